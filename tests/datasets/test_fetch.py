"""The catalog, and downloads from a server in this process: resumed, checked, unpacked, refused."""

import hashlib
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from mixed import write_mixed

from robopolicy import cli
from robopolicy.datasets import fetch as fetching
from robopolicy.datasets.detect import FORMATS, open_source
from robopolicy.datasets.download import download, unpack
from robopolicy.datasets.fetch import fetch, format_catalog, read_catalog
from robopolicy.errors import DataError, RobopolicyError


class Server(ThreadingHTTPServer):
    """Serves `files` with byte ranges; breaks off after `limit` bytes of an answer when that is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tag = '"one"'
        self.limit: int | None = None
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        data = self.server.files.get(self.path[1:])
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.headers.get("If-Range", self.server.tag) != self.server.tag:
            start = 0
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", self.server.tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:][: self.server.limit])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


DATA = bytes(range(256)) * 40


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_download_that_breaks_off_is_resumed_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["f"], server.limit = DATA, 3000
    download(server.url + "f", tmp_path / "f", len(DATA), sha(DATA), "")
    assert (tmp_path / "f").read_bytes() == DATA
    assert server.ranges == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


def test_what_another_process_left_is_resumed_only_if_the_file_is_still_the_same(
    server: Server, tmp_path: Path
) -> None:
    server.files["f"], server.limit = DATA, 4000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robopolicy.datasets.download.ATTEMPTS", 0)
        with pytest.raises(DataError, match="4000 bytes, which are kept"):
            download(server.url + "f", tmp_path / "f", None, None, "")
    assert (tmp_path / "f.part").read_bytes() == DATA[:4000]
    newer = DATA[::-1]
    server.files["f"], server.tag, server.limit = newer, '"two"', None
    download(server.url + "f", tmp_path / "f", None, None, "")
    assert (tmp_path / "f").read_bytes() == newer
    assert server.ranges[-1] == "bytes=4000-"


def test_a_part_without_validator_and_checksum_begins_anew(server: Server, tmp_path: Path) -> None:
    server.files["f"] = DATA
    (tmp_path / "f.part").write_bytes(b"something else")
    download(server.url + "f", tmp_path / "f", None, None, "")
    assert (tmp_path / "f").read_bytes() == DATA
    assert server.ranges == [None]


def test_a_whole_part_needs_no_more_bytes_and_a_longer_one_is_dropped(server: Server, tmp_path: Path) -> None:
    server.files["f"] = DATA
    (tmp_path / "f.part").write_bytes(DATA)
    download(server.url + "f", tmp_path / "f", None, sha(DATA), "")
    assert (tmp_path / "f").read_bytes() == DATA
    (tmp_path / "g.part").write_bytes(DATA + b"more")
    server.files["g"] = DATA
    download(server.url + "g", tmp_path / "g", None, sha(DATA), "")
    assert (tmp_path / "g").read_bytes() == DATA


def test_wrong_bytes_are_refused_and_removed(server: Server, tmp_path: Path) -> None:
    server.files["f"] = DATA
    with pytest.raises(DataError, match=r"sha256 is .* the catalog says 0000"):
        download(server.url + "f", tmp_path / "f", None, "0" * 64, "")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="10240 bytes on the server, the catalog says 5"):
        download(server.url + "f", tmp_path / "f", 5, None, "")
    with pytest.raises(DataError, match="answers 404"):
        download(server.url + "nothing", tmp_path / "f", None, None, "")
    with pytest.raises(DataError, match="not an http"):
        download("file:///etc/passwd", tmp_path / "f", None, None, "")


def zipped(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        if link is not None:
            item = zipfile.ZipInfo(link)
            item.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(item, "/etc")
    return path


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:evil", "a\\..\\..\\evil"])
def test_members_that_lead_out_are_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"good": b"1", name: b"2"})
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def test_links_twins_bombs_and_damage_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="is a link"):
        unpack(zipped(tmp_path / "link.zip", {"a": b"1"}, link="b"), out)
    with pytest.raises(DataError, match="comes twice"):
        unpack(zipped(tmp_path / "twins.zip", {"a": b"1", "A": b"2"}), out)
    monkeypatch.setattr("robopolicy.datasets.download.PLAIN_BYTES", 10_000)
    with pytest.raises(DataError, match="would unpack"):
        unpack(zipped(tmp_path / "bomb.zip", {"zeros": bytes(10**6)}), out)
    assert not list(out.iterdir())
    good = zipped(tmp_path / "good.zip", {"a": DATA})
    for cut in (10, 60, good.stat().st_size - 10):
        (tmp_path / "cut.zip").write_bytes(good.read_bytes()[:cut])
        with pytest.raises(DataError, match="damaged zip"):
            unpack(tmp_path / "cut.zip", out)
    flipped = bytearray(good.read_bytes())
    flipped[60] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(DataError, match="damaged zip"):
        unpack(tmp_path / "flipped.zip", out)


@pytest.fixture
def catalog(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of one zipped zarr dataset and one HDF5 file, both on the server; returns the root."""
    write_mixed(tmp_path / "made" / "inner" / "d.zarr", "zarr")
    files = {
        str(p.relative_to(tmp_path / "made")): p.read_bytes() for p in (tmp_path / "made").rglob("*") if p.is_file()
    }
    archive = zipped(tmp_path / "d.zip", files | {"other/readme": b"not for us"}).read_bytes()
    file = write_mixed(tmp_path / "d.hdf5", "robomimic").read_bytes()
    server.files |= {"d.zip": archive, "d.hdf5": file}
    common = {"about": "made", "task": "none", "licence": "MIT", "homepage": "http://127.0.0.1"}
    entries = {
        "zipped": common
        | {"format": "zarr", "dataset": "inner/d.zarr", "episodes": 4, "steps": 25}
        | {"files": [{"name": "d.zip", "url": server.url + "d.zip", "unzip": True, "members": "inner/"}]},
        "plain": common
        | {"format": "robomimic", "dataset": "d.hdf5"}
        | {
            "files": [{"name": "d.hdf5", "url": server.url + "d.hdf5", "size": len(file), "sha256": sha(file)}],
        },
        "made-up": common | {"format": "lerobot", "dataset": None, "files": [], "generated": "run the expert"},
    }
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "all.yaml").write_text(yaml.safe_dump(entries))
    monkeypatch.setattr(fetching, "read_catalog", lambda: read_catalog(folder))
    monkeypatch.setenv("ROBOPOLICY_DATASETS", str(tmp_path / "root"))
    return tmp_path / "root"


def test_fetched_datasets_open_by_name(catalog: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, format in (("zipped", "zarr"), ("plain", "robomimic")):
        with pytest.raises(DataError, match=f"robopolicy data fetch {name}"):
            open_source(Path(name))
        assert cli.main(["data", "fetch", name]) == 0
        with open_source(Path(name)) as source:
            assert (source.format, source.n_steps) == (format, 25)
        assert cli.main(["data", "info", name]) == 0
    assert sorted(p.name for p in catalog.iterdir()) == [".downloads", "plain", "zipped"]
    assert [p.name for p in (catalog / "zipped").iterdir()] == ["inner"]
    capsys.readouterr()
    assert cli.main(["data", "fetch", "--list"]) == 0
    assert "generated" in capsys.readouterr().out


def test_a_second_fetch_asks_nothing_and_a_shared_archive_is_kept(catalog: Path, server: Server) -> None:
    fetch("zipped")
    fetch("zipped")
    assert server.ranges == [None]
    assert (catalog / ".downloads" / "d.zip").exists()


def test_from_a_file_a_folder_and_another_address(catalog: Path, server: Server, tmp_path: Path) -> None:
    server.files["mirror/d.hdf5"] = server.files.pop("d.hdf5")
    assert fetch("plain", tmp_path / "a", str(tmp_path / "d.hdf5")).is_file()
    assert fetch("plain", tmp_path / "b", str(tmp_path)).is_file()
    assert fetch("plain", tmp_path / "c", server.url + "mirror/").is_file()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "d.hdf5").write_bytes(b"x" * (tmp_path / "d.hdf5").stat().st_size)
    with pytest.raises(DataError, match="sha256"):
        fetch("plain", tmp_path / "e", str(tmp_path / "wrong"))
    with pytest.raises(DataError, match="no such file"):
        fetch("plain", tmp_path / "e", str(tmp_path / "nowhere"))
    assert not (tmp_path / "e" / "plain").exists()


def test_offline_is_one_line_with_a_way_out(
    catalog: Path, server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.shutdown()
    server.server_close()
    assert cli.main(["data", "fetch", "plain"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert server.url + "d.hdf5" in line
    assert "--from PATH_OR_URL" in line
    assert not (catalog / "plain").exists()


def test_other_content_than_the_catalog_says_is_refused(catalog: Path, server: Server, tmp_path: Path) -> None:
    write_mixed(tmp_path / "small" / "inner" / "d.zarr", "zarr")
    server.files["d.zip"] = zipped(tmp_path / "x.zip", {"inner/x": b"1"}).read_bytes()
    with pytest.raises(DataError, match=r"inner/d\.zarr is not in what was downloaded"):
        fetch("zipped")
    assert not (catalog / "zipped").exists()
    assert not list(catalog.rglob("*.unpacked"))


def test_the_catalog_is_sound() -> None:
    entries = read_catalog()
    assert {"pusht-human", "robomimic-lift-ph", "robomimic-tool_hang-ph-image", "libero-goal", "metaworld"} <= set(
        entries
    )
    for entry in entries.values():
        assert entry.format in FORMATS
        assert entry.files or entry.generated
        assert all(part.url.startswith("http") for part in entry.files)
    assert entries["robomimic-can-ph"].size == 46_889_752
    assert entries["libero-100"].size is None
    assert "robomimic-can-ph" in format_catalog()
    with pytest.raises(RobopolicyError, match="not for download: record them"):
        fetch("metaworld")
    with pytest.raises(RobopolicyError, match="Did you mean 'pusht-human'"):
        fetch("pusht-humans")


@pytest.mark.parametrize(
    "text", ["a: [", "a: {about: b}", "a: {files: [{name: ../x, url: u}]}", "../a: {files: []}", "- 1"]
)
def test_a_damaged_catalog_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(DataError, match=r"bad\.yaml: damaged catalog"):
        read_catalog(tmp_path)
