"""Passwords from the environment, the terminal and the configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcluster.config import passwords, readers
from vcluster.errors import MissingError, RequestError, VclusterError

SECRET = "hunter2 # ; % = 'x' [y]"


def find(source: str, **given_: object) -> str | None:
    arguments: dict[str, object] = {"environment": {}, "ask": None, "secret": "password of student@server1"} | given_
    return passwords.find(source, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "con#fig.ini"
    path.write_text(f"[switch]\npassword: {SECRET}  \n[server  red]\npassword = env:RED\n[server blue]\nhost = x\n")
    path.chmod(0o600)
    return path


def test_no_source_no_password() -> None:
    assert find("") is None


def test_from_the_environment() -> None:
    assert find("env:LAB", environment={"LAB": SECRET}) == SECRET


@pytest.mark.parametrize("environment", [{}, {"LAB": ""}, {"lab": "x"}])
def test_a_variable_that_is_not_set(environment: dict[str, str]) -> None:
    with pytest.raises(MissingError, match="variable LAB for the password of student@server1 is not set"):
        find("env:LAB", environment=environment)


def test_from_the_terminal() -> None:
    asked = []
    assert find("ask", ask=lambda prompt: asked.append(prompt) or SECRET) == SECRET
    assert asked == ["Password of student@server1"]


def test_no_terminal_and_no_answer() -> None:
    with pytest.raises(MissingError, match="cannot ask for the password of student@server1: no terminal"):
        find("ask")
    with pytest.raises(MissingError, match="the password of student@server1 is empty"):
        find("ask", ask=lambda _: "")


def test_from_the_file(config: Path) -> None:
    assert find(f"file:{config}#switch") == SECRET


def test_from_a_file_with_a_byte_order_mark_and_dos_line_ends(config: Path) -> None:
    config.write_bytes(b"\xef\xbb\xbf" + config.read_bytes().replace(b"\n", b"\r\n"))
    assert find(f"file:{config}#switch") == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o601])
def test_a_file_that_others_can_read_is_refused(config: Path, mode: int) -> None:
    config.chmod(mode)
    message = "other users can read .*, which contains the password of student@server1"
    with pytest.raises(RequestError, match=message) as raised:
        find(f"file:{config}#switch")
    assert raised.value.hint == f"chmod 600 '{config}'"
    assert "hunter2" not in repr(raised.value)


@pytest.mark.parametrize("section", ["server red", "server blue", "server green", ""])
def test_a_password_that_was_removed_from_the_file(config: Path, section: str) -> None:
    with pytest.raises(MissingError, match="no longer contains the password of student@server1"):
        find(f"file:{config}#{section}")


def test_a_file_that_was_removed(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"cannot read the password of student@server1: .*config.ini does not exist"):
        find(f"file:{tmp_path}/config.ini#switch")


@pytest.mark.parametrize("text", ["a\nb", "a\0b", "a\x1bb", "\udcff"])
def test_a_password_with_control_characters_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="contains a control character") as raised:
        find("env:LAB", environment={"LAB": text})
    assert text not in raised.value.message


def test_the_source_of_a_password() -> None:
    file = Path("/etc/config.ini")
    for text, section, expected in [
        ("env:LAB", "switch", "env:LAB"),
        ("ask", "switch", "ask"),
        (SECRET, "server red", "file:/etc/config.ini#server red"),
        ("file:/x#y", "switch", "file:/etc/config.ini#switch"),
    ]:
        assert readers.password_source(text, file=file, section=section) == expected


def test_an_unknown_source() -> None:
    with pytest.raises(RequestError) as raised:
        find("hunter2")
    assert "hunter2" not in f"{raised.value.message} {raised.value.hint}"


@given(st.text(max_size=40), st.text(max_size=20))
def test_any_source_gives_a_password_or_a_clear_error(source: str, value: str) -> None:
    try:
        found = find(source, environment={source.removeprefix("env:"): value}, ask=lambda _: value)
    except VclusterError as error:
        assert len(error.message.splitlines()) == 1
        return
    assert found in (None, value)
