"""Image recipes: the mirrors, the bytes in front of the partition, and the seeds that need no cloud-init."""

from __future__ import annotations

import json
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vcluster.errors import VclusterError
from vcluster.images import build
from vcluster.images.recipes import Recipe, read_recipe, recipe_names

IMAGES = Path(__file__).parents[2] / "images"

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("text", "archive", "security"),
    [
        ("", build.DEBIAN.archive, build.DEBIAN.security),
        (DEB822, "http://mirror.example/debian", "http://mirror.example/debian-security"),
        ("deb http://m.example/debian bookworm main\n", "http://m.example/debian", build.DEBIAN.security),
        (
            "deb [arch=amd64] http://m.example/debian trixie main # ours\n",
            "http://m.example/debian",
            build.DEBIAN.security,
        ),
        ("# deb http://m.example/debian bookworm main\n", build.DEBIAN.archive, build.DEBIAN.security),
        ("deb-src http://m.example/debian bookworm main\n", build.DEBIAN.archive, build.DEBIAN.security),
        ("deb http://archive.ubuntu.com/ubuntu noble main\n", build.DEBIAN.archive, build.DEBIAN.security),
        ("deb https://download.example/linux/debian bookworm stable\n", build.DEBIAN.archive, build.DEBIAN.security),
        (
            "deb [signed-by=/k/vendor.gpg] https://v.example/debian bookworm main\n",
            build.DEBIAN.archive,
            build.DEBIAN.security,
        ),
        (DEB822.replace("Types: deb", "Enabled: no\nTypes: deb"), build.DEBIAN.archive, build.DEBIAN.security),
    ],
)
def test_only_debian_mirrors_are_used(text: str, archive: str, security: str) -> None:
    assert build.host_mirrors([text]) == build.Mirrors(archive, security)


def test_the_boot_gap_holds_code_table_and_core() -> None:
    gap = build.boot_gap(b"\xeb" * 512, b"core")
    assert gap[:440] == b"\xeb" * 440
    assert gap[446:454] == b"\x80\xfe\xff\xff\x83\xfe\xff\xff"
    assert int.from_bytes(gap[454:458], "little") == 2048
    assert int.from_bytes(gap[458:462], "little") == 4 * 1024**3 // 512 - 2048
    assert gap[510:] == b"\x55\xaacore"


def test_a_core_that_reaches_into_the_partition_is_refused() -> None:
    with pytest.raises(VclusterError, match="does not fit"):
        build.boot_gap(bytes(512), bytes(1024**2))


def test_the_digest_depends_on_contents_names_and_modes(tmp_path: Path) -> None:
    recipe = Recipe(tmp_path / "r", "trixie", ())
    recipe.folder.mkdir()
    digests = [build.recipe_digest(recipe)]
    (recipe.folder / "a").write_text("x")
    digests.append(build.recipe_digest(recipe))
    (recipe.folder / "a").chmod(0o755)
    digests.append(build.recipe_digest(recipe))
    (recipe.folder / "a").rename(recipe.folder / "b")
    digests.append(build.recipe_digest(recipe))
    for shared in (recipe.common, recipe.guest):
        shared.mkdir()
        (shared / "unit").write_text("x")
        digests.append(build.recipe_digest(recipe))
    assert len(set(digests)) == len(digests)
    assert build.recipe_digest(recipe) == digests[-1]


@pytest.mark.parametrize(("name", "suite"), [("debian12", "bookworm"), ("debian13", "trixie")])
def test_each_recipe_installs_the_same_packages_from_its_suite(name: str, suite: str) -> None:
    recipe = read_recipe(IMAGES / name)
    command = build.install_command(recipe, Path("/root"))
    assert f"{suite}-security main" in build.sources_text(recipe.suite, build.DEBIAN)
    assert command[-3:] == [suite, "/root", "-"]
    assert f'--customize-hook={IMAGES}/debian/customize.sh {IMAGES}/{name} "$1"' in command
    assert f"--include={','.join(recipe.packages)}" in command and "mpich" in recipe.packages
    assert "--dpkgopt=path-exclude=/usr/share/man/*" in command


def test_programs_of_debian_13_do_not_load_libraries_for_graphics_processors() -> None:
    excluded = read_recipe(IMAGES / "debian13").excluded
    assert any("rocm" in pattern for pattern in excluded) and any("libLLVM" in pattern for pattern in excluded)
    assert not any("rocm" in pattern for pattern in read_recipe(IMAGES / "debian12").excluded)


def test_only_images_with_an_old_mpich_preload_a_library() -> None:
    """The recipe that does not build the library promises that programs end without it."""
    for name in recipe_names():
        script = IMAGES / name / "customize.sh"
        builds_library = script.exists() and "mpi-end.so" in script.read_text()
        assert builds_library != ("mpi-ends" in read_recipe(IMAGES / name).features), name


def test_versions_come_from_the_status_file() -> None:
    status = "Package: mpich\nStatus: ok\nVersion: 4.0\n\nPackage: gone\nStatus: x\n\nPackage: gcc\nVersion: 12\n"
    assert build.package_versions(status, ("gcc", "mpich", "gone", "other")) == {"gcc": "12", "mpich": "4.0"}


@pytest.mark.parametrize("folder", ["debian", *recipe_names()])
def test_every_line_of_units_txt_has_a_known_verb_and_a_reason(folder: str) -> None:
    verbs = {"enable", "disable", "mask", "late", "fallback", "generator", "udev", "tmpfiles"}
    for line in (IMAGES / folder / "units.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            verb, _, reason = line.split(None, 2)
            assert verb in verbs and reason, line


@pytest.fixture(scope="module")
def seed() -> ModuleType:
    path = IMAGES / "debian/overlay/usr/lib/vcluster/seed"
    spec = spec_from_loader("seed", SourceFileLoader("seed", str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINK = {"match": {"macaddress": "52:54:00:00:00:01"}, "set-name": "lab0", "addresses": ["10.0.0.1/24"], "mtu": 1450}


def files(user: dict[str, Any], link: dict[str, Any]) -> dict[str, str]:
    network = {"version": 2, "ethernets": {"lab0": link}}
    return {
        "meta-data": json.dumps({"instance-id": "i", "local-hostname": "node1"}),
        "user-data": "#cloud-config\n" + json.dumps(user),
        "network-config": json.dumps(network),
    }


def test_a_plain_seed_is_understood(seed: ModuleType) -> None:
    user = {
        "hostname": "node1",
        "users": [{"name": "root", "ssh_authorized_keys": ["k"]}],
        "write_files": [{"path": "/x"}],
    }
    metadata, config, ethernets = seed.parse(files(user, LINK))
    assert (metadata["local-hostname"], config, ethernets) == ("node1", user, {"lab0": LINK})


@pytest.mark.parametrize(
    ("user", "link"),
    [
        ({"runcmd": [["true"]]}, LINK),
        ({"packages": ["mpich"]}, LINK),
        ({"users": [{"name": "debian"}]}, LINK),
        ({"users": [{"name": "root", "sudo": "ALL"}]}, LINK),
        ({"write_files": [{"path": "/x", "append": True}]}, LINK),
        ({}, LINK | {"dhcp6": True}),
        ({}, LINK | {"match": {"name": "en*"}}),
        ({}, LINK | {"wakeonlan": True}),
        ({}, LINK | {"addresses": ["10.0.0/24"]}),
        ({}, LINK | {"addresses": ["10.0.0.1/40"]}),
        ({}, LINK | {"routes": [{"to": "default", "via": "nowhere"}]}),
    ],
)
def test_a_seed_with_other_keys_needs_cloud_init(seed: ModuleType, user: dict[str, Any], link: dict[str, Any]) -> None:
    with pytest.raises((seed.UnknownSeed, OSError, ValueError)):
        seed.parse(files(user, link))
