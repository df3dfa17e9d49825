"""The packet filter tables of a cluster, compared with the rules that they should have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from pyroute2.netlink.nfnetlink.nftsocket import nft_chain_msg, nft_rule_msg, nft_table_msg

from vcluster.adapters.network.netlink_socket import Message, NetlinkSocket, as_received
from vcluster.adapters.network.nftables_messages import (
    FAMILIES,
    GET_CHAIN,
    GET_RULE,
    GET_TABLE,
    NoTablesError,
    new_message,
    open_socket,
)

AS_PLANNED, ABSENT = "as planned", "does not exist"
_DORMANT = 1  # a flag of tables: their chains see no packet
# A chain is its hook, priority, type and policy. A rule is its expressions.
_CHAIN_PARTS = ("NFTA_CHAIN_HOOK", "NFTA_CHAIN_TYPE", "NFTA_CHAIN_POLICY")

_Plain = object


def table_states(table: str, planned: Mapping[int, Sequence[Message]]) -> dict[str, str]:
    """For each family whether its table has exactly the planned chains and rules; otherwise the first difference."""
    return {FAMILIES[family]: _state(table, family, messages) for family, messages in planned.items()}


def _state(table: str, family: int, planned: Sequence[Message]) -> str:
    try:
        with open_socket(f"table {table}") as netlink:
            found = _dump(netlink, nft_table_msg, GET_TABLE, family, "NFTA_TABLE_NAME", table)
            chains = _dump(netlink, nft_chain_msg, GET_CHAIN, family, "NFTA_CHAIN_TABLE", table)
            rules = _dump(netlink, nft_rule_msg, GET_RULE, family, "NFTA_RULE_TABLE", table)
    except NoTablesError:
        return ABSENT
    if not found:
        return ABSENT
    if found[0].get_attr("NFTA_TABLE_FLAGS") & _DORMANT:
        return "is dormant, so no packet passes its rules"
    wanted = [as_received(message) for message in planned]
    return _difference(
        [each for each in wanted if isinstance(each, nft_chain_msg)], chains,
        [each for each in wanted if isinstance(each, nft_rule_msg)], rules,
    )  # fmt: skip


def _dump(
    netlink: NetlinkSocket, kind: type[Message], number: int, family: int, attribute: str, table: str
) -> list[Message]:
    """The messages about one table. Only rules can be asked for by their table; others are sorted out here."""
    asked = [(attribute, table)] if number == GET_RULE else []
    found = netlink.dump(new_message(kind, number, asked, family=family), kind)
    return [message for message in found if message.get_attr(attribute) == table]


def _difference(
    chains: Sequence[Message], found_chains: Sequence[Message], rules: Sequence[Message], found_rules: Sequence[Message]
) -> str:
    """The first difference between the planned chains and rules and those that were found."""
    planned, present = _chains(chains), _chains(found_chains)
    for name in [*planned, *present]:
        if name not in present or name not in planned:
            return f"chain {name} {'is missing' if name in planned else 'is not planned'}"
        if not _contains(present[name], planned[name]):
            return f"chain {name} has another hook, priority or policy"
    wanted, existing = _rules(rules), _rules(found_rules)
    for name in planned:
        for at, (one, other) in enumerate(zip(wanted[name], existing[name], strict=False), start=1):
            if not _contains(other, one):
                return f"rule {at} of chain {name} differs"
        if len(wanted[name]) != len(existing[name]):
            return f"chain {name} has {len(existing[name])} rules, not {len(wanted[name])}"
    return AS_PLANNED


def _chains(messages: Sequence[Message]) -> dict[str, list[_Plain]]:
    return {
        message.get_attr("NFTA_CHAIN_NAME"): [_plain(message.get_attr(part)) for part in _CHAIN_PARTS]
        for message in messages
    }


def _rules(messages: Sequence[Message]) -> dict[str, list[_Plain]]:
    found: dict[str, list[_Plain]] = defaultdict(list)
    for message in messages:
        found[message.get_attr("NFTA_RULE_CHAIN")].append(_plain(message.get_attr("NFTA_RULE_EXPRESSIONS")))
    return found


def _plain(value: Message) -> _Plain:
    """A message or a part of one as dictionaries, lists and values."""
    if isinstance(value, dict) and "attrs" in value:
        return {pair[0]: _plain(pair[1]) for pair in value["attrs"]}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _contains(found: _Plain, planned: _Plain) -> bool:
    """Whether all planned values are there. The kernel also sends the defaults of what we leave out."""
    if isinstance(planned, dict):
        return isinstance(found, dict) and all(
            name in found and _contains(found[name], value) for name, value in planned.items()
        )
    if isinstance(planned, list):
        return (
            isinstance(found, list)
            and len(found) == len(planned)
            and all(_contains(one, other) for one, other in zip(found, planned, strict=True))
        )
    return found == planned
