"""The interface of the agent, and the agent of this machine, which runs operations in this process."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, BinaryIO

from vcluster.adapters.network.interface_spec import Interface
from vcluster.adapters.pipe import Pipe
from vcluster.adapters.process import python
from vcluster.adapters.process_pipe import ProcessPipe
from vcluster.agent import request_loop
from vcluster.agent.request_loop import Body, Operations
from vcluster.model.survey_answer import FaultReading, LinkLimits, SurveyAnswer
from vcluster.model.traffic import port_counters
from vcluster.util.deadline import Deadline

Progress = Callable[[int], None]
# The command loads only what it needs of pyroute2, and so does this program.
_CAPTURE = """
from vcluster.adapters.network import load_less_of_pyroute2
load_less_of_pyroute2()
from vcluster.agent.capture import frame_capture
frame_capture.main()
"""

# The types of the results of operations. The controller checks each answer of a server against them.
_OBSTACLE = {"what": str, "detail": str, "fix": str}
_SNAPSHOT = {"key": str, "image": str, "created": str, "memory_mib": int, "bytes": int, "circumstances": dict[str, Any]}

RESULTS: Mapping[str, Any] = {
    "ping": None,
    "uninstall": None,
    "identity": {
        "machine": str, "hostname": str, "is_root": bool, "has_rights": bool, "cpus": int, "has_libvirt": bool,
    },
    "diagnose": [{"level": str, **_OBSTACLE}],
    "hidden_mounts": list[str],
    "clock": float,
    "observe": {
        "disk_free_mib": int, "cpus": int, "processors": list[int], "tsc_mhz": int,
        "routes": list[tuple[IPv4Network, str]],
        "hosts": list[IPv4Address], "is_dns_free": bool, "vnis": list[int],
    },
    "route_to": {"local": IPv4Address, "interface": str, "mtu": int, "is_local": bool},
    "addresses": list[tuple[str, IPv4Address]],
    "interfaces": [Interface],
    "has_clusters": bool,
    "create_interfaces": None,
    "destroy_interfaces": list[str],
    "destroy_bridge": None,
    "attach": list[str],
    "guard": list[tuple[str, str]],
    "remove_guard": None,
    "guards": list[str],
    "lacking_guards": list[str],
    "obstacles": [_OBSTACLE],
    "listen": None,
    "send_frames": None,
    "received_probes": dict[str, list[str]],
    "stop_listening": None,
    "folders": list[str],
    "files": list[str],
    "label_folder": None,
    "labelled_folders": dict[str, str],
    "remove_folder": None,
    "remove_empty_folders": None,
    "remove_traces": None,
    "tail": str,
    "processor": str,
    "lower_priority": None,
    "prepare_domain": None,
    "kvm_conditions": dict[str, str],
    "try_kvm": {"kvm_works": bool, "reason": str},
    "image_problem": str,
    "begin_image": {"is_there": bool, "is_busy": bool, "partial": dict[str, int]},
    "receive_image_file": None,
    "finish_image": None,
    "remove_image": bool,
    "begin_snapshot": {"folder": str, "is_there": bool, "is_busy": bool},
    "prepare_template": None,
    "lend_file": None,
    "dig_holes": None,
    "finish_snapshot": None,
    "drop_snapshot": None,
    "permit_snapshot": None,
    "check_snapshot": {
        "is_there": bool, "is_busy": bool, "refused": str, "wrong": str, "xml": str, "ram": str, "state": str,
    },
    "copy_disk": None,
    "list_snapshots": [_SNAPSHOT],
    "sweep_snapshots": {"removed": list[str], "in_use": list[str]},
    "remove_snapshots": list[str],
    "clone_obstacle": str,
    "write_profile": bool,
    "profiles": [{"cluster": str, "domain": str, "by": str, "uuid": str}],
    "remove_profiles": None,
    "survey_cluster": SurveyAnswer,
    "require_link_support": None,
    "can_delay_frames": bool,
    "shape_links": None,
    "read_link_limits": LinkLimits,
    "begin_trace": None,
    "end_traces": list[str],
    "count_frames": None,
    "counted_frames": dict[str, tuple[int, int]],
    "end_frame_count": None,
    "vcpu_times": {"t_ns": int, "times": dict[str, tuple[int, int]]},
    "turn_off_offloads": list[str],
    "restore_offloads": list[str],
    "offload_labels": list[str],
    "read_traffic": {**port_counters.FORM},
    "count_pairs": None,
    "stop_pairs": None,
    "require_fault_support": None,
    "cut_links": None,
    "begin_node_fault": None,
    "begin_flap": None,
    "end_node_fault": None,
    "heal_faults": None,
    "drop_faults": None,
    "drop_pause": None,
    "fault_records": list[tuple[str, str]],
    "read_faults": FaultReading,
    "server_report": {"files": dict[str, str], "absent": dict[str, str], "failed": dict[str, str]},
}  # fmt: skip


class Agent(ABC):
    """Runs operations on a server. Several threads may call it; it runs one operation at a time."""

    name: str

    @abstractmethod
    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        """Run an operation and return its result. Raises the operation's errors."""

    @abstractmethod
    def send(
        self,
        operation: str,
        source: BinaryIO,
        size: int,
        /,
        *,
        progress: Progress | None = None,
        deadline: Deadline,
        awaited: str = "",
        **arguments: Any,
    ) -> Any:
        """Run an operation with `size` bytes of `source` as its body; `progress` gets the number of bytes sent."""

    @abstractmethod
    def start_capture(self, request: Mapping[str, Any], deadline: Deadline) -> Pipe:
        """Start a process that captures frames. Its module describes its request and its messages."""

    @abstractmethod
    def uninstall(self, deadline: Deadline) -> None:
        """Remove the agent's files from the server, unless another command uses them, and end the agent."""

    @abstractmethod
    def close(self) -> None:
        """End the agent. A second call does nothing."""


class LocalAgent(Agent):
    """The agent of this machine: it runs operations in this process."""

    name = "this machine"

    def __init__(self, operations: Operations | None = None) -> None:
        self._given = operations
        self._lock = threading.Lock()

    def call(self, operation: str, /, *, deadline: Deadline, awaited: str = "", **arguments: Any) -> Any:
        with self._lock:
            deadline.check(self._awaited(awaited, operation))
            return request_loop.perform(self._operations(), operation, arguments, None)

    def send(
        self,
        operation: str,
        source: BinaryIO,
        size: int,
        /,
        *,
        progress: Progress | None = None,
        deadline: Deadline,
        awaited: str = "",
        **arguments: Any,
    ) -> Any:
        with self._lock:
            body = _LocalBody(source, size, progress, lambda: deadline.check(self._awaited(awaited, operation)))
            return request_loop.perform(self._operations(), operation, arguments, body)

    def start_capture(self, request: Mapping[str, Any], deadline: Deadline) -> Pipe:
        pipe = ProcessPipe(self.name, python(_CAPTURE))
        try:
            pipe.write(json.dumps(request).encode() + b"\n", deadline, "the start of the capture")
        except BaseException:
            pipe.close()
            raise
        return pipe

    def uninstall(self, deadline: Deadline) -> None:
        """Do nothing: nothing was installed."""

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _awaited(self, awaited: str, operation: str) -> str:
        return f"{awaited or f'the operation {operation}'} on {self.name}"

    def _operations(self) -> Operations:
        if self._given is not None:
            return self._given
        from vcluster.agent.operations import OPERATIONS  # noqa: PLC0415 - it loads pyroute2

        return OPERATIONS


class _LocalBody(Body):
    """A body in this process: each read checks the deadline and reports the progress."""

    def __init__(self, source: BinaryIO, size: int, progress: Progress | None, check: Callable[[], None]) -> None:
        super().__init__(source, size)
        self._progress, self._check = progress, check

    def read(self, limit: int = -1) -> bytes:
        self._check()
        data = super().read(limit)
        if self._progress and data:
            self._progress(self.size - self.left)
        return data
