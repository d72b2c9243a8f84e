"""Photos in tars: listed and read where they lie, whoever made the tar."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import Settings
from infra.storage import LocalStorage, ObjectInfo, open_storage
from pipelines.catalog import reading, tars
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader, TarIndexes
from pipelines.catalog.sources import Catalog, list_photos
from pipelines.catalog.tars import Tar, TarIndex, read_tar
from schemas.errors import CatalogError, PhotoError
from tests.pipelines.catalog.photos import SHARED, TRICKY_NAMES, jpeg, manifest

SETTINGS = Settings(threads=2)
A, B = jpeg(55.5, 13.25), jpeg(55.6, 13.25, shade=20)


def catalog(*sources: Path | str, needs_position: bool = True) -> Catalog:
    return list_photos([str(each) for each in sources], settings=SETTINGS, limits=PhotoLimits(), needs_position=needs_position)


def uris(found: Catalog) -> list[str]:
    return sorted(found.images["uri"].to_pylist())


def reasons(found: Catalog) -> list[tuple[str, str]]:
    return sorted(zip(found.rejects["uri"].to_pylist(), found.rejects["reason"].to_pylist(), strict=True))


def packed(members: list[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files, or of members as odd as one likes."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def odd(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read_again(found: Catalog) -> dict[str, bytes]:
    """The bytes of every photo of a catalog."""
    reader = PhotoReader(SETTINGS, PhotoLimits())
    columns = ["uri", "root", "size_bytes", "checksum"]
    return {row["uri"]: reader.read(**row) for row in found.images.select(columns).to_pylist()}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch) -> Iterator[None]:
    """As in a process that has seen no tar yet."""
    monkeypatch.setattr(reading, "_INDEXES", TarIndexes())


# What is listed


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_a_folder_of_its_own_name(tmp_path: Path, form: int):
    shard = write(tmp_path / "lund" / "shard-0001.tar", packed([("a.jpg", A), ("./2026/b.jpg", B), ("notes.txt", b"x")], form))

    found = catalog(shard)

    assert read_again(found) == {"lund/shard-0001.tar/a.jpg": A, "lund/shard-0001.tar/2026/b.jpg": B}
    assert found.images.select(["uri", "image_id", "photo_key", "root"]).equals(
        catalog(shard.parent).images.select(["uri", "image_id", "photo_key", "root"])
    ), "the same alone and in its folder"
    assert found.notes == [f"{shard.parent.name}/{shard.name}: 1 files that are no photos were skipped: 1 .txt"]


def test_photos_and_tars_of_a_folder_add_up(tmp_path: Path):
    write(tmp_path / "lund" / "a.jpg", A)
    write(tmp_path / "lund" / "1" / "x.TAR", packed([("a.jpg", A)]))
    write(tmp_path / "lund" / "1" / "y.tar", packed([("a.jpg", B)]))

    assert uris(catalog(tmp_path / "lund")) == ["lund/1/x.TAR/a.jpg", "lund/1/y.tar/a.jpg", "lund/a.jpg"]


def test_a_photo_has_the_same_checksum_in_a_tar_and_beside_it(tmp_path: Path):
    write(tmp_path / "lund" / "a.jpg", A)
    write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A)]))

    (one, other) = catalog(tmp_path / "lund").images["checksum"].to_pylist()

    assert one == other


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_tars_of_a_bucket_are_read_by_ranges(request: pytest.FixtureRequest, kind: str):
    endpoint = request.getfixturevalue("s3_endpoint") if kind == "s3" else None
    settings = Settings(threads=2, s3_endpoint_url=endpoint)
    url = "s3://maps/tars" if kind == "s3" else f"memory://{uuid4().hex}"
    large = jpeg(1, 2, comment_bytes=300_000)
    open_storage(url, settings).put("x.tar", packed([("a.jpg", A), ("dir/large.jpg", large), ("b.jpg", B)]))

    for source in (url, f"{url}/x.tar"):
        images = list_photos([source], settings=settings, limits=PhotoLimits(), needs_position=True).images

        reader = PhotoReader(settings, PhotoLimits())
        columns = images.select(["uri", "root", "size_bytes", "checksum"]).to_pylist()
        assert {row["uri"]: reader.read(**row) for row in columns} == {
            f"{url}/x.tar/a.jpg": A,
            f"{url}/x.tar/dir/large.jpg": large,
            f"{url}/x.tar/b.jpg": B,
        }


def test_a_table_may_name_photos_in_a_tar(tmp_path: Path):
    write(tmp_path / "x.tar", packed([("a.jpg", A)]))
    table = write(tmp_path / "photos.csv", b"uri,lat,lon\nx.tar/a.jpg,10,20\nx.tar/gone.jpg,10,20\n")

    found = catalog(table)

    assert read_again(found) == {"x.tar/a.jpg": A}
    assert reasons(found) == [("x.tar/gone.jpg", "missing")]


def test_a_folder_that_is_called_like_a_tar_is_a_folder(tmp_path: Path):
    write(tmp_path / "lund.tar" / "old.tar" / "a.jpg", A)
    write(tmp_path / "lund.tar" / "new.tar", packed([("odd.tar/b.jpg", B)]))

    found = catalog(tmp_path / "lund.tar")

    assert read_again(found) == {"lund.tar/old.tar/a.jpg": A, "lund.tar/new.tar/odd.tar/b.jpg": B}


@pytest.mark.parametrize("name", TRICKY_NAMES)
def test_any_name_in_a_tar_is_read_and_kept_as_it_is(tmp_path: Path, name: str):
    write(tmp_path / "x.tar", packed([(f"dir/{name}", A)], tarfile.PAX_FORMAT))

    assert read_again(catalog(tmp_path / "x.tar")) == {f"{tmp_path.name}/x.tar/dir/{name}": A}


def test_names_beyond_a_hundred_characters_are_whole(tmp_path: Path):
    name = f"{'folder/' * 40}a.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write(tmp_path / "x.tar", packed([(name, A)], form))

        assert uris(catalog(tmp_path / "x.tar")) == [f"{tmp_path.name}/x.tar/{name}"]


# What is read later


def test_reading_a_photo_of_a_tar_that_was_listed_is_one_range_and_no_more(tmp_path: Path, monkeypatch):
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A), ("b.jpg", B)]))
    found = catalog(shard)
    asked: list[tuple[str, int | None, int | None]] = []
    get = LocalStorage.get

    def spy(self: LocalStorage, path: str, *, start: int | None = None, stop: int | None = None) -> bytes:
        asked.append((Path(path).name, start, stop))
        return get(self, path, start=start, stop=stop)

    monkeypatch.setattr(LocalStorage, "get", spy)
    read_again(found)

    assert sorted(asked) == [
        ("x.tar", 512, 512 + len(A)),
        ("x.tar", 512 * 2 + _padded(len(A)), 512 * 2 + _padded(len(A)) + len(B)),
    ]


def test_another_process_finds_the_photos_of_a_tar_by_looking_through_it_once(tmp_path: Path, monkeypatch):
    found = catalog(write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A), ("b.jpg", B)])))
    monkeypatch.setattr(reading, "_INDEXES", TarIndexes())
    looked: list[ObjectInfo] = []

    def spy(storage: LocalStorage, info: ObjectInfo) -> Tar:
        looked.append(info)
        return read_tar(storage, info)

    monkeypatch.setattr(reading, "read_tar", spy)

    assert read_again(found) == {"lund/x.tar/a.jpg": A, "lund/x.tar/b.jpg": B}
    assert len(looked) == 1


def test_photos_of_a_tar_that_was_packed_anew_are_found_where_they_lie_now(tmp_path: Path):
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A), ("b.jpg", B)]))
    found = catalog(shard)
    write(shard, packed([("new.jpg", A), ("b.jpg", B), ("a.jpg", A)]))

    assert read_again(found) == {"lund/x.tar/a.jpg": A, "lund/x.tar/b.jpg": B}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (packed([("a.jpg", jpeg(55.5, 13.25, shade=91))]), "changed"),
        (packed([("new.jpg", B), ("a.jpg", A + b"\0")]), "changed"),
        (packed([("a.jpg", A)])[: 512 + len(A) // 2], "missing"),
        (packed([("b.jpg", B)]), "missing"),
        (b"no tar", "missing"),
        (None, "missing"),
    ],
    ids=["another photo", "a longer one", "cut", "another name", "no tar", "gone"],
)
@pytest.mark.parametrize("known", [True, False], ids=["as listed", "in another process"])
def test_a_photo_of_a_tar_that_changed_since_it_was_listed_is_refused(
    tmp_path: Path, monkeypatch, changed: bytes | None, reason: str, known: bool
):
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A)]))
    found = catalog(shard)
    shard.unlink()
    if changed is not None:
        write(shard, changed)
    if not known:
        monkeypatch.setattr(reading, "_INDEXES", TarIndexes())

    with pytest.raises(PhotoError, match=reason):
        read_again(found)


def test_places_in_tars_are_forgotten_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr(reading, "MAX_INDEXED", 5)
    info = ObjectInfo(path="x.tar", size_bytes=1, etag=None, modified_at=None)
    indexes = TarIndexes()
    for number in range(4):
        members = [tars.Member(name=str(each), start=0, size_bytes=1) for each in range(2)]
        indexes.put(reading.Location("/", str(number)), TarIndex.of(info, members))

    assert [indexes.get(reading.Location("/", str(number))) is not None for number in range(4)] == [False, False, True, True]


# Tars that want to hurt


def test_what_is_no_plain_file_is_named_and_the_others_are_kept(tmp_path: Path):
    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "4", "GNU.sparse.numblocks": "1"}
    hostile = [
        ("/etc/a.jpg", A),
        ("../a.jpg", A),
        ("dir/../../a.jpg", A),
        (odd("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (odd("hard.jpg", tarfile.LNKTYPE, "good.jpg"), b""),
        (odd("device.jpg", tarfile.BLKTYPE), b""),
        (odd("pipe.jpg", tarfile.FIFOTYPE), b""),
        (odd("folder.jpg", tarfile.DIRTYPE), b""),
        (sparse, b"x"),
        ("empty.jpg", b""),
        ("x" * 2000 + ".jpg", A),
        ("good.jpg", A),
    ]
    shard = write(tmp_path / "lund" / "x.tar", packed(hostile, tarfile.PAX_FORMAT))

    found = catalog(shard)

    assert read_again(found) == {"lund/x.tar/good.jpg": A}
    assert reasons(found) == sorted(
        [
            ("lund/x.tar//etc/a.jpg", "outside-root"),
            ("lund/x.tar/../a.jpg", "outside-root"),
            ("lund/x.tar/dir/../../a.jpg", "outside-root"),
            ("lund/x.tar/soft.jpg", "unreadable"),
            ("lund/x.tar/hard.jpg", "unreadable"),
            ("lund/x.tar/device.jpg", "unreadable"),
            ("lund/x.tar/pipe.jpg", "unreadable"),
            ("lund/x.tar/sparse.jpg", "unreadable"),
            ("lund/x.tar/empty.jpg", "empty-file"),
            (f"lund/x.tar/{'x' * 1024}...xxxx.jpg", "unreadable"),
        ]
    )


def test_of_two_files_of_one_name_the_last_is_taken_as_after_unpacking(tmp_path: Path):
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A), ("b.jpg", B), ("./a.jpg", B)]))
    (tmp_path / "unpacked").mkdir()
    with tarfile.open(shard) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")

    found = catalog(shard)

    assert read_again(found)["lund/x.tar/a.jpg"] == (tmp_path / "unpacked" / "a.jpg").read_bytes() == B
    assert reasons(found) == [("lund/x.tar/a.jpg", "duplicate-name")]


@pytest.mark.parametrize("cut", ["in the photo", "in its header", "between photos", "in the first header"])
def test_of_a_tar_that_was_cut_off_the_photos_before_are_kept(tmp_path: Path, cut: str):
    whole = packed([("a.jpg", A), ("b.jpg", B)])
    second = 512 + _padded(len(A))
    at = {"in the photo": second + 512 + 9, "in its header": second + 9, "between photos": second, "in the first header": 9}[cut]
    shard = write(tmp_path / "lund" / "x.tar", whole[:at])

    found = catalog(shard)

    assert uris(found) == ([] if cut == "in the first header" else ["lund/x.tar/a.jpg"])
    assert (
        reasons(found)
        == {
            "in the photo": [("lund/x.tar/b.jpg", "truncated")],
            "in its header": [("lund/x.tar", "damaged")],
            "between photos": [],
            "in the first header": [("lund/x.tar", "damaged")],
        }[cut]
    )
    assert (found.notes == ["lund/x.tar: it lacks the mark of its end; photos may be missing if it was cut off"]) == (
        cut in ("in the photo", "between photos")
    )


def test_photos_behind_a_broken_header_or_in_a_second_tar_are_missed_aloud(tmp_path: Path):
    whole = packed([("a.jpg", A), ("b.jpg", B)])
    second = 512 + _padded(len(A))
    write(tmp_path / "lund" / "broken.tar", whole[:second] + b"x" * 512 + whole[second + 512 :])
    write(tmp_path / "lund" / "two.tar", packed([("a.jpg", A)]) + packed([("b.jpg", B)]))

    found = catalog(tmp_path / "lund")

    assert uris(found) == ["lund/broken.tar/a.jpg", "lund/two.tar/a.jpg"]
    assert dict(zip(found.rejects["uri"].to_pylist(), found.rejects["detail"].to_pylist(), strict=True)) == {
        "lund/broken.tar": f"cannot be read from byte {second:,} on (no header there); the 1 files before were taken",
        "lund/two.tar": f"what follows its end at byte {second:,} was not read; if these are several tars in one file, split it",
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty-file"),
        (b"hello", "damaged"),
        (os.urandom(9000), "damaged"),
        (A, "damaged"),
        (b"\x1f\x8b\x08\0 rest", "unsupported-format"),
    ],
    ids=["empty", "text", "noise", "a photo", "compressed"],
)
def test_what_is_no_tar_is_named_and_the_photos_beside_it_are_kept(tmp_path: Path, data: bytes, reason: str):
    write(tmp_path / "lund" / "a.jpg", A)
    write(tmp_path / "lund" / "x.tar", data)

    found = catalog(tmp_path / "lund")

    assert uris(found) == ["lund/a.jpg"]
    assert reasons(found) == [("lund/x.tar", reason)]


def test_compressed_tars_are_refused_with_advice(tmp_path: Path):
    write(tmp_path / "lund" / "a.jpg", A)
    shard = write(tmp_path / "lund" / "x.tar.gz", b"\x1f\x8b")

    assert reasons(catalog(shard.parent)) == [("lund/x.tar.gz", "unsupported-format")]
    with pytest.raises(CatalogError, match="decompress it first"):
        catalog(shard)


def test_a_tar_without_photos_is_said_so(tmp_path: Path):
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.txt", b"x"), ("inner.tar", packed([("a.jpg", A)]))]))

    with pytest.raises(CatalogError, match=r"lund/x.tar: no photos in it \(1 .tar, 1 .txt\)"):
        catalog(shard)


def test_a_bomb_of_members_is_cut_off_and_said_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_MEMBERS", 3)
    found = catalog(write(tmp_path / "lund" / "x.tar", packed([(f"{number}.jpg", A) for number in range(5)])))

    assert len(found.images) == 3
    assert found.rejects["detail"].to_pylist() == ["more than 3 files; those were taken. Split it"]


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
@pytest.mark.parametrize("size", [2 * tars.MAX_HEADER_BYTES, -512])
def test_a_header_that_claims_to_be_huge_or_negative_is_not_believed(tmp_path: Path, kind: bytes, size: int):
    """The tar is 64 MB of holes on disk, which a reader that believes the header would load."""
    bomb = tarfile.TarInfo("bomb")
    bomb.type, bomb.size = kind, size
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A)])[: 512 + _padded(len(A))] + bomb.tobuf(tarfile.GNU_FORMAT))
    os.truncate(shard, 64 * 2**20)

    found = catalog(shard)

    assert uris(found) == ["lund/x.tar/a.jpg"]
    assert reasons(found) == [("lund/x.tar", "damaged")]


@pytest.mark.parametrize("count", [900, 3000])
def test_long_names_upon_long_names_end(tmp_path: Path, count: int):
    """`tarfile` calls itself for the header after a long name."""
    name = tarfile.TarInfo("name")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 5
    shard = write(tmp_path / "lund" / "x.tar", packed([("a.jpg", A)])[: 512 + _padded(len(A))])
    with shard.open("ab") as file:
        file.write((name.tobuf(tarfile.GNU_FORMAT) + b"b.jpg".ljust(512, b"\0")) * count)

    found = catalog(shard)

    assert uris(found) == ["lund/x.tar/a.jpg"]
    assert reasons(found) == [("lund/x.tar", "damaged")]


SOUND = packed([("a.jpg", A), ("dir/" * 60 + "b.jpg", B), ("c.json", b"{}")], tarfile.PAX_FORMAT)


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4), st.data())
def test_no_damage_to_a_tar_is_more_than_a_reason(tmp_path_factory: pytest.TempPathFactory, damage: list, data: st.DataObject):
    damaged = bytearray(SOUND)
    for at, put in damage:
        at = data.draw(st.sampled_from([at, at % 512, (at % 8) * 512 + at % 512]))  # mostly headers
        damaged[at : at + len(put)] = put
    shard = tmp_path_factory.getbasetemp() / "damaged.tar"
    shard.write_bytes(damaged)

    found = read_tar(LocalStorage(str(shard.parent)), LocalStorage(str(shard.parent)).info(shard.name))

    for member in found.members:
        assert member.problem or 0 <= member.start <= member.start + member.size_bytes <= len(damaged)
        assert member.problem or not member.name.startswith(("/", "../"))
    index = TarIndex.of(ObjectInfo(path="", size_bytes=0, etag=None, modified_at=None), found.members)
    for member in found.members:
        assert member.problem or index.find(member.name) == (member.start, member.size_bytes)


# The same as from a folder


@pytest.mark.parametrize("part", ["exif", "malformed"])
def test_each_real_and_malformed_file_ends_alike_from_a_tar_and_from_a_folder(shared_data: Path, tmp_path: Path, part: str):
    assert len(manifest(part)) == {"exif": 70, "malformed": 269}[part]
    shard = tmp_path / "x.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(SHARED / part, arcname=part)
    folder, packed_up = catalog(SHARED / part, needs_position=False), catalog(shard, needs_position=False)

    def facts(found: Catalog) -> list[dict]:
        dropped = ("image_id", "photo_key", "root")
        rows = found.images.drop_columns(dropped).to_pylist()
        return sorted(({**row, "uri": row["uri"].rpartition("/")[2]} for row in rows), key=lambda row: row["uri"])

    def refusals(found: Catalog) -> list[tuple[str, str, str]]:
        rows = found.rejects.select(["uri", "reason", "detail"]).to_pylist()
        return sorted((row["uri"].rpartition("/")[2], row["reason"], row["detail"]) for row in rows)

    assert facts(packed_up) == facts(folder)
    assert refusals(packed_up) == refusals(folder)
    for uri, data in read_again(packed_up).items():
        assert data == (SHARED / part / uri.rpartition("/")[2]).read_bytes(), "so it also decodes alike"


def _padded(size: int) -> int:
    return -(-size // 512) * 512
