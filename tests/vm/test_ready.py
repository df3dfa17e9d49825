"""A cluster is ready: these tests try it by plain ssh, ping and mpiexec, without the check of vcluster."""

from __future__ import annotations

import json
import re
import time
from itertools import product

import pytest

from tests.clusters import Cluster
from tests.vm.conftest import NODES

pytestmark = [pytest.mark.vm, pytest.mark.core]

PAYLOAD = 1450 - 28

HELLO = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    int rank, size, length, sum, count = 1 << 18;
    char name[MPI_MAX_PROCESSOR_NAME];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_processor_name(name, &length);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    int *data = calloc(count, sizeof *data);
    MPI_Bcast(data, count, MPI_INT, 0, MPI_COMM_WORLD);
    printf("rank %d of %d on %s, sum %d\n", rank, size, name, sum);
    MPI_Finalize();
    return 0;
}
"""


BRIEF = r"""
#include <mpi.h>
int main(int argc, char **argv) {
    int sent[3] = {0}, received[3];
    MPI_Init(&argc, &argv);
    MPI_Alltoall(sent, 1, MPI_INT, received, 1, MPI_INT, MPI_COMM_WORLD);
    MPI_Finalize();
    return 0;
}
"""
BRIEF_RUNS = 6


@pytest.mark.parametrize("node", NODES)
def test_full_size_packets_reach_every_address(cluster: Cluster, node: str) -> None:
    for number in (1, 2, 3):
        cluster.ssh(node, f"ping -c 1 -W 5 -M do -s {PAYLOAD} 10.0.0.{number}")


def test_one_byte_more_does_not_pass(cluster: Cluster) -> None:
    assert "too long" in cluster.ssh("red1", f"ping -c 1 -W 5 -M do -s {PAYLOAD + 1} 10.0.0.2 2>&1", check=False)


def test_the_mtu_is_the_same_everywhere(cluster: Cluster) -> None:
    assert cluster.ssh("red2", "cat /sys/class/net/lab0/mtu").strip() == "1450"
    links = json.loads(cluster.host.sh("ip -j link"))
    mtus = {link["ifname"]: link["mtu"] for link in links if link["ifname"].startswith(("vc-", "vp-"))}
    assert mtus == {"vc-lab": 1450, "vp-lab-1": 1450, "vp-lab-2": 1450, "vp-lab-3": 1450}


@pytest.mark.parametrize("node", NODES)
def test_logins_between_all_nodes_need_no_prompt_and_know_the_host_keys(cluster: Cluster, node: str) -> None:
    for other in NODES:
        output = cluster.ssh(node, f"ssh -n -o BatchMode=yes -o StrictHostKeyChecking=yes {other} hostname")
        assert output.strip() == other
    assert cluster.ssh(node, "ls ~/.ssh").split() == ["authorized_keys", "id_ed25519", "id_ed25519.pub"]


def test_each_node_has_its_own_host_key(cluster: Cluster) -> None:
    keys = {cluster.ssh(node, "cat /etc/ssh/ssh_host_*_key.pub").split()[1] for node in NODES}
    assert len(keys) == 3


@pytest.mark.parametrize("node", NODES)
def test_names_resolve_to_cluster_addresses(cluster: Cluster, node: str) -> None:
    for number, other in enumerate(NODES, start=1):
        found = {line.split()[0] for line in cluster.ssh(node, f"getent ahostsv4 {other}").splitlines()}
        assert found == {f"10.0.0.{number}"}
    assert "127.0.1.1" not in cluster.ssh(node, "cat /etc/hosts")


def test_no_password_opens_a_node(cluster: Cluster) -> None:
    settings = cluster.ssh("red2", "/usr/sbin/sshd -T", user="root")
    assert "passwordauthentication no" in settings
    assert "kbdinteractiveauthentication no" in settings
    shadow = cluster.ssh("red2", "cat /etc/shadow", user="root")
    assert not re.search(r"^[^:]+:\$", shadow, re.MULTILINE)
    assert not re.search(r"^[^:]+::", shadow, re.MULTILINE)


def test_a_file_of_one_node_is_read_on_all_nodes(cluster: Cluster) -> None:
    cluster.ssh("red2", "echo from red2 > cloud/note")
    for node in NODES:
        assert cluster.ssh(node, "cat cloud/note") == "from red2\n"
    for node in NODES[1:]:
        mounted = cluster.ssh(node, "findmnt -n -t nfs4 -o SOURCE,FSTYPE /home/mpiuser/cloud").split()
        assert mounted == ["red1:/home/mpiuser/cloud", "nfs4"]
    cluster.ssh("red1", "rm cloud/note")


def test_files_of_the_shared_folder_belong_to_the_clusters_user(cluster: Cluster) -> None:
    """Root of a worker claims uids: its own, that of a daemon, and that of a user who has a file on the head."""
    cluster.ssh("red1", "cd ~mpiuser/cloud && install -m 600 -o 1234 /etc/hostname private", user="root")
    cluster.ssh("red1", "mkdir -m 700 cloud/claims")
    act = (
        "cd ~mpiuser/cloud/claims && for uid in 0 1 1234; do setpriv --reuid $uid --regid $uid --clear-groups {}; done"
    )
    cluster.ssh("red2", act.format("touch $uid"), user="root")
    for refused in ("chown root 0", "cat ../private"):
        output = cluster.ssh("red2", act.format(f"{refused} 2>&1"), user="root", check=False)
        assert len(re.findall("not permitted|Permission denied", output)) == 3, output
    owners = cluster.ssh("red1", "stat -c '%n %U %G' cloud/claims/*; rm -rf cloud/claims cloud/private").splitlines()
    assert owners == [f"cloud/claims/{uid} mpiuser mpiuser" for uid in (0, 1, 1234)]


def test_nfs_serves_the_cluster_network_only(cluster: Cluster) -> None:
    (line,) = cluster.ssh("red1", "exportfs -s", user="root").splitlines()
    clients, _, options = line.split()[1].partition("(")
    assert clients == "10.0.0.0/24"
    assert {"all_squash", "anonuid=2000"} < set(options.rstrip(")").split(","))


def test_programs_keep_owners_modes_and_times_on_the_shared_folder(cluster: Cluster) -> None:
    script = (
        "set -e; cd cloud; mkdir kept; cd kept; umask 022; echo text >a; chmod 640 a; touch -d 2020-01-02 a; "
        "cp -p a b; chown mpiuser:mpiuser b; tar -cf a.tar a b; mkdir t; tar -xpf a.tar -C t; ln a c; mv c d; "
        "stat -c '%U %a' a b t/b d; test ! a -nt t/b; test ! t/b -nt a; flock a true; cd ..; rm -r kept"
    )
    assert cluster.ssh("red2", script).splitlines() == ["mpiuser 640"] * 4


def test_plain_mpiexec_uses_the_hostfile(cluster: Cluster) -> None:
    assert cluster.ssh("red1", "cat /home/mpiuser/hostfile") == "red1:1\nred2:1\nred3:1\n"
    output = cluster.ssh("red1", "mpiexec -f hostfile -n 3 hostname")
    assert sorted(output.split()) == sorted(NODES)


def test_a_program_compiled_on_the_head_runs_on_all_and_its_traffic_uses_lab0(cluster: Cluster) -> None:
    cluster.ssh("red1", f"cat > cloud/hello.c <<'END'\n{HELLO}\nEND\nmpicc -o cloud/hello cloud/hello.c", timeout_s=300)
    count = "cat /sys/class/net/{}/statistics/tx_bytes"
    before = [int(cluster.ssh("red1", count.format(card))) for card in ("lab0", "mgmt0")]
    output = cluster.ssh("red1", "mpiexec -n 3 ./cloud/hello", timeout_s=300)
    after = [int(cluster.ssh("red1", count.format(card))) for card in ("lab0", "mgmt0")]
    lab, management = (now - then for now, then in zip(after, before, strict=True))
    assert sorted(output.splitlines()) == [f"rank {rank} of 3 on {node}, sum 3" for rank, node in enumerate(NODES)]
    assert lab > 2**20, "the broadcast of 1 MiB must leave by lab0"
    assert management < 2**17, "only the logins of this test may use mgmt0"


def test_programs_that_end_after_their_first_messages_do_not_hang(cluster: Cluster) -> None:
    """MPICH 4.0 without the library of images/guest/mpi-end.c hangs in the first run."""
    cluster.ssh("red1", f"cat > cloud/brief.c <<'END'\n{BRIEF}\nEND\nmpicc -o cloud/brief cloud/brief.c", timeout_s=300)
    runs = f"for run in $(seq {BRIEF_RUNS}); do timeout 60 mpiexec -n 3 cloud/brief || exit; echo ended; done"
    assert cluster.ssh("red1", runs, timeout_s=61 * BRIEF_RUNS).split() == ["ended"] * BRIEF_RUNS


def test_ranks_of_the_check_sleep_while_they_wait(cluster: Cluster) -> None:
    """The program of the check replaces functions that MPI libraries call. Without that it would only be slow."""
    libraries = "/usr/lib/x86_64-linux-gnu/libucs.so.0 /usr/lib/x86_64-linux-gnu/libmpich.so.12"
    called = cluster.ssh("red1", f"nm -D --undefined-only {libraries}")
    replaced = cluster.ssh("red1", "nm -D --defined-only /usr/lib/vcluster/mpi-check")
    for name in ("epoll_create", "sched_yield", "ucp_worker_progress"):
        assert re.search(rf" U {name}\b", called)
        assert re.search(rf" T {name}\b", replaced)


def test_the_stages_change_nothing_the_second_time(cluster: Cluster) -> None:
    code = """
from vcluster.cli import common
from vcluster.commands.steps import node_login
from vcluster.commands.steps.deployment import Deployment
from vcluster.commands.steps.node_lifecycle import NodeLifecycle
from vcluster.util.deadline import Deadline
context = common.context()
files = context.files('lab')
plan, keys, deadline = files.read_ledger().plan, files.read_keys(), Deadline(120)
with (
    context.fleet_of(plan) as fleet,
    Deployment(context, fleet, plan, keys, deadline).watched(hint='') as (cluster, watch),
):
    lifecycle = NodeLifecycle(cluster, watch, image_password=str)
    for node in plan.nodes:
        with node_login.log_in(keys, None, node, user='root', deadline=deadline) as session:
            print(node.name, list(lifecycle.configure(node, session) + lifecycle.mount_shares(node, session)))
"""
    from tests.clusters import VCLUSTER

    output = cluster.host.server.run([VCLUSTER[0], "-c", code], timeout_s=300).stdout
    assert output == "".join(f"{node} []\n" for node in NODES)


def test_a_lost_file_fails_the_check_which_names_the_pairs(cluster: Cluster) -> None:
    cluster.ssh("red3", "rm /etc/ssh/ssh_known_hosts", user="root")
    failed = cluster.host.vcluster("check", "-o", "json", check=False)
    assert failed.returncode == 1
    document = json.loads(failed.stdout)
    assert document["passed"] is False
    bad = {(one["check"], one["from"], one["to"]) for one in document["checks"] if not one["passed"]}
    assert bad == {("ssh", "red3", node) for node in NODES}
    known_hosts = cluster.ssh("red1", "cat /etc/ssh/ssh_known_hosts")
    cluster.ssh("red3", f"cat > /etc/ssh/ssh_known_hosts <<'END'\n{known_hosts}END", user="root")


@pytest.mark.parametrize("options", [[], ["--pairs"]], ids=["derived", "tried"])
def test_the_check_reports_every_pair(cluster: Cluster, options: list[str]) -> None:
    document = cluster.host.json("check", *options, timeout_s=300)
    assert document["passed"] is True
    rows = {(one["check"], one["from"], one["to"]) for one in document["checks"]}
    pairs = set(product(NODES, NODES))
    assert {(frm, to) for check, frm, to in rows if check == "ping"} == pairs
    assert {(frm, to) for check, frm, to in rows if check == "ssh"} == pairs
    assert {frm for check, frm, _ in rows if check == "nfs"} == set(NODES)
    assert {to for check, _, to in rows if check == "mpi"} == set(NODES)
    assert {frm for check, frm, _ in rows if check == "clock"} == set(NODES)
    assert {frm for check, frm, _ in rows if check == "identity"} == set(NODES)


def test_a_wrong_clock_fails_the_check_and_repair_sets_it(cluster: Cluster) -> None:
    cluster.ssh("red2", "date -s '10 minutes ago'", user="root")
    failed = json.loads(cluster.host.vcluster("check", "-o", "json", check=False).stdout)["checks"]
    bad = {(one["check"], one["from"], one["to"]): one["detail"] for one in failed if not one["passed"]}
    assert bad.keys() == {("clock", "red2", "red1")}
    assert re.fullmatch(
        r"its clock is (5\d\d|600) s behind that of red1; to set it: vcluster repair [a-z]+", *bad.values()
    )
    cluster.host.vcluster("repair", timeout_s=300)  # it ends with the check
    before, seconds, after = time.time(), float(cluster.ssh("red2", "date +%s.%N")), time.time()
    assert before - 2 < seconds < after + 2


@pytest.mark.parametrize("node", NODES)
def test_the_kernel_of_an_emulated_node_does_not_measure_the_speed_of_its_clock(cluster: Cluster, node: str) -> None:
    """The measurement is wrong on a busy machine. Later the kernel corrects the given frequency by less than 1 %."""
    given = json.loads(
        cluster.host.vcluster("local", "create", "--name", "other", "-n", "1", "--plan", "-o", "json").stdout
    )
    (server,) = given["servers"]
    log = cluster.ssh(node, "dmesg | grep 'tsc: '", user="root")
    assert re.search(rf"tsc: Detected {server['tsc_mhz']}\.000 MHz (TSC|processor)", log), log
    refined = re.search(r"tsc: Refined TSC clocksource calibration: ([0-9.]+) MHz", log)
    assert refined and abs(float(refined[1]) - server["tsc_mhz"]) <= server["tsc_mhz"] / 100, log


@pytest.mark.parametrize(
    ("setting", "holder"),
    [("AllowUsers root", ""), pytest.param("PerSourceMaxStartups 1", "red1", marks=pytest.mark.rare)],
    ids=["for-a-user", "for-too-many-logins"],
)
def test_a_node_whose_sshd_refuses_logins_fails_the_check_which_names_it(
    cluster: Cluster, setting: str, holder: str
) -> None:
    """`holder` has a connection to the node that never logs in, so sshd refuses the next one from there."""
    path = "/etc/ssh/sshd_config.d/00-refuse.conf"
    reload = "kill -HUP $(cat /run/sshd.pid); sleep 1"
    cluster.ssh("red2", f"echo '{setting}' >{path}; {reload}", user="root")
    try:
        if holder:
            cluster.ssh(
                holder, "setsid bash -c 'exec 3<>/dev/tcp/red2/22; sleep 100' >/dev/null 2>&1 </dev/null & sleep 1"
            )
        failed = cluster.host.vcluster("check", "-o", "json", check=False, timeout_s=240)
    finally:
        cluster.ssh("red2", f"rm {path}; {reload}", user="root")
    assert failed.returncode == 1, failed.stderr
    checks = json.loads(failed.stdout)["checks"]
    bad = {(one["from"], one["to"]): one["detail"] for one in checks if one["check"] == "ssh" and not one["passed"]}
    assert ("red1", "red2") in bad
    assert {to for _, to in bad} == {"red2"}
    assert "red2" in bad["red1", "red2"] or "10.0.0.2" in bad["red1", "red2"], "ssh's own reason"
    assert all(one["passed"] for one in checks if one["check"] == "mpi"), "it needs no logins"
    assert cluster.host.json("check", timeout_s=300)["passed"] is True


def test_without_the_program_the_check_compiles_it_and_without_a_compiler_it_runs_hostname(cluster: Cluster) -> None:
    cluster.ssh("red1", "mv /usr/lib/vcluster/mpi-check /root", user="root")
    try:
        assert "exchanges no data" not in cluster.host.vcluster("check", timeout_s=300).stderr
        assert "mpi-check" not in cluster.ssh("red1", "ls -A cloud")
        cluster.ssh("red1", "mv /usr/bin/mpicc /root", user="root")
        assert "exchanges no data" in cluster.host.vcluster("check", timeout_s=300).stderr
    finally:
        cluster.ssh("red1", "mv /root/mpicc /usr/bin; mv /root/mpi-check /usr/lib/vcluster", user="root")
