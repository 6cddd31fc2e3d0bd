"""The wire protocol's promises: generated code is fresh, every part is documented, and no number changes silently."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from med_duallora.v1 import coordinator_pb2 as co
from med_duallora.v1 import federation_pb2 as pb

from shared import protocol

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"
BUF = Path(sys.executable).parent / "buf"


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_committed_code_is_what_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([PROTO / "generate.sh", tmp_path], check=True, capture_output=True, timeout=300)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "med_duallora" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in (PROTO / "med_duallora" / "v1").glob("*_pb2*")}
    assert sorted(committed) == sorted(fresh), "run `make proto`"
    for name, text in fresh.items():
        assert committed[name] == text, f"{name} is not what the .proto files say: run `make proto`"


def test_every_service_message_and_field_is_documented_and_named_well() -> None:
    result = buf("lint", PROTO)
    assert (result.returncode, result.stdout) == (0, "")


def copy_with(tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the protocol with one line changed."""
    shutil.copytree(PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("*.py*", "__pycache__"))
    path = tmp_path / "proto" / "med_duallora" / "v1" / "federation.proto"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return tmp_path / "proto"


def test_a_field_without_a_comment_is_caught(tmp_path: Path) -> None:
    comment = "  // Seconds left until the round's deadline; 0 if none is running.\n"
    changed = copy_with(tmp_path, comment, "")
    result = buf("lint", changed)
    assert result.returncode != 0
    assert 'Field "remaining_s" should have a non-empty comment' in result.stdout


# --- compatibility -----------------------------------------------------------------------------------------------------


def released() -> list[Path]:
    """Descriptions of every protocol version that agents in the field may speak."""
    return sorted((PROTO / "released").glob("*.json"))


@pytest.mark.parametrize("version", released(), ids=lambda path: path.stem)
def test_what_a_released_version_means_still_means_the_same(version: Path) -> None:
    result = buf("breaking", PROTO, "--against", version)
    assert (result.returncode, result.stdout) == (0, "")


def test_a_change_of_the_protocol_changes_its_version(tmp_path: Path) -> None:
    now = tmp_path / "now.json"
    assert buf("build", PROTO, "--exclude-source-info", "-o", now).returncode == 0
    at_release = PROTO / "released" / f"{protocol.VERSION}.json"
    assert json.loads(now.read_text()) == json.loads(at_release.read_text()), (
        "the .proto files differ from this version's: docs/protocol.md says how to raise it"
    )


def test_a_reused_field_number_is_caught(tmp_path: Path) -> None:
    changed = copy_with(tmp_path, "uint64 committed = 1;", "string committed = 1;")
    result = buf("breaking", changed, "--against", released()[0])
    assert result.returncode != 0
    assert 'Field "1" with name "committed" on message "BeginUploadResponse" changed type' in result.stdout


# Worked by hand from the encoding's description (https://protobuf.dev/programming-guides/encoding/): a tag is
# number << 3 | wire type; 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes, little-endian.
ONE, TWO, HALF, THIRTY = "000000000000f03f", "0000000000000040", "000000000000e03f", "0000000000003e40"  # doubles
AUC = f"0a03617563 11{HALF}"  # the map entry auc: 0.5, 14 bytes
RECEIPT = f"0803 120164 19{ONE}"  # 14 bytes
POLICY = f"0808 1004 1803 21{ONE} 29{TWO}"  # 24 bytes
receipt = pb.Receipt(round=3, digest="d", accepted_at=1.0)
policy = pb.RoundPolicy(rounds=8, invited=4, quorum=3, deadline_s=1.0, grace_s=2.0)

GOLDEN: list[tuple[Message, str]] = [
    (pb.Chunk(offset=300, data=b"\x01\x02"), "08ac02 12020102"),
    (
        pb.JoinRequest(
            federation="hearts",
            protocol_version="1.0",
            agent_id="a",
            software_version="s",
            base_model_sha256="b",
            training_patients=150,
            codecs=["f32"],
            recipes=["r", "t"],
        ),
        "0a06686561727473 1203312e30 1a0161 220173 2a0162 309601 3a03663332 420172 420174",
    ),
    (
        pb.JoinResponse(
            federation="h",
            protocol_version="1.0",
            site="ge",
            adapter_manifest=b"{}",
            adapter_digest="d",
            recipe="r",
            recipe_parameters=b"{}",
            round_policy=policy,
            training_patients=150,
            contract_sha256="c",
            version=3,
        ),
        f"0a0168 1203312e30 1a026765 22027b7d 2a0164 320172 3a027b7d 4218{POLICY} 489601 520163 5803",
    ),
    (
        pb.AwaitRoundRequest(
            federation="h",
            agent_id="a",
            round=3,
            following=pb.INSTRUCTION_TRAIN,
            version=2,
            wait_s=30.0,
            progress=0.5,
        ),
        f"0a0168 120161 1803 2001 2802 31{THIRTY} 3d0000003f",
    ),
    (
        pb.AwaitRoundResponse(
            instruction=pb.INSTRUCTION_FINISHED, round=8, version=8, digest="d", remaining_s=1.0, reason="r"
        ),
        f"0805 1008 1808 220164 29{ONE} 320172",
    ),
    (pb.AwaitRoundResponse(instruction=pb.INSTRUCTION_WAIT), "0802"),
    (pb.AwaitRoundResponse(instruction=pb.INSTRUCTION_ABANDON), "0803"),
    (pb.AwaitRoundResponse(instruction=pb.INSTRUCTION_PAUSED), "0804"),
    (pb.AwaitRoundResponse(instruction=pb.INSTRUCTION_EVICTED), "0806"),
    (
        pb.FetchAdapterRequest(federation="h", version=2, if_none_match="d", offset=1 << 20, round=3),
        "0a0168 1002 1a0164 20808040 2803",
    ),
    (
        pb.FetchAdapterResponse(
            info=pb.AdapterInfo(version=2, parent_digest="p", digest="d", size=1_200_000, layout_digest="l")
        ),
        "0a0f 0802 120170 1a0164 20809f49 2a016c",
    ),
    (pb.FetchAdapterResponse(chunk=pb.Chunk(offset=1, data=b"x")), "1205 0801 120178"),
    (pb.FetchAdapterResponse(not_modified=True), "1801"),
    (
        pb.BeginUploadRequest(
            federation="h",
            agent_id="a",
            round=3,
            digest="d",
            size=1_200_000,
            codec="f32",
            layout_digest="l",
            base_version=2,
            training_patients=150,
            metrics={"auc": 0.5},
        ),
        f"0a0168 120161 1803 220164 28809f49 3203663332 3a016c 4802 509601 5a0e{AUC}",
    ),
    (pb.BeginUploadRequest(layout_json=b"[]"), "42025b5d"),
    (pb.BeginUploadResponse(committed=1 << 20, receipt=receipt), f"08808040 120e{RECEIPT}"),
    (
        pb.UploadDeltaRequest(start=pb.UploadStart(federation="h", agent_id="a", round=3, digest="d")),
        "0a0b 0a0168 120161 1803 220164",
    ),
    (pb.UploadDeltaRequest(chunk=pb.Chunk(offset=1, data=b"x")), "1205 0801 120178"),
    (pb.UploadDeltaResponse(receipt=receipt), f"0a0e{RECEIPT}"),
    (
        pb.ReportEvaluationRequest(federation="h", agent_id="a", round=3, version=2, cases=9, metrics={"auc": 0.5}),
        f"0a0168 120161 1803 2002 2809 320e{AUC}",
    ),
    (pb.ReportEvaluationResponse(), ""),
    (pb.ProbeRequest(payload=b"x", echo=True, describe=True), "0a0178 1001 1801"),
    (pb.ProbeResponse(payload=b"x", server_time=1.0, joined=pb.JoinResponse(version=3)), f"0a0178 11{ONE} 1a025803"),
    (co.GetStatusRequest(federation="h"), "0a0168"),
    (
        co.GetStatusResponse(
            federation="h",
            state="s",
            round=3,
            version=2,
            digest="d",
            round_policy=policy,
            sites=[co.Site(name="n", state="s", training_patients=150, last_seen=1.0, last_round=3, progress=0.5)],
        ),
        f"0a0168 120173 1803 2002 2a0164 3218{POLICY} 3a19 0a016e 120173 189601 21{ONE} 2803 350000003f",
    ),
    (
        co.ListRoundsResponse(
            rounds=[
                co.Round(
                    number=3,
                    state="s",
                    base_version=2,
                    version=3,
                    manifest=b"{}",
                    opened_at=1.0,
                    closed_at=2.0,
                    diagnostics={"auc": 0.5},
                )
            ]
        ),
        f"0a2f 0803 120173 1802 2003 2a027b7d 31{ONE} 39{TWO} 420e{AUC}",
    ),
    (co.PauseRequest(federation="h", reason="r"), "0a0168 120172"),
    (co.ResumeRequest(federation="h"), "0a0168"),
    (co.EvictRequest(federation="h", site="n", reason="r", allow_quorum=2), "0a0168 12016e 1a0172 2002"),
    (co.EvictResponse(warning="w"), "0a0177"),
    (co.RollbackRequest(federation="h", version=2, reason="r", round=7), "0a0168 1002 1a0172 2007"),
    (co.RollbackResponse(round=8, abandoned_round=7), "0808 1007"),
]


@pytest.mark.parametrize(("message", "encoded"), GOLDEN, ids=lambda value: getattr(type(value), "__name__", ""))
def test_a_message_has_the_bytes_worked_by_hand(message: Message, encoded: str) -> None:
    by_hand = bytes.fromhex(encoded)
    assert message.SerializeToString(deterministic=True) == by_hand
    assert type(message).FromString(by_hand) == message


def test_every_message_has_bytes_worked_by_hand() -> None:
    shown = {type(message).DESCRIPTOR.name for message, _ in GOLDEN}
    inside = {
        "AdapterInfo",
        "Change",
        "UploadStart",
        "RoundPolicy",
        "Receipt",
        "Site",
        "Round",
    }  # inside others, with every field set
    empty = {"ListRoundsRequest", "PauseResponse", "ResumeResponse"}
    there = {name for module in (pb, co) for name in module.DESCRIPTOR.message_types_by_name}
    assert there == shown | inside | empty


def test_a_message_of_a_newer_minor_is_read_by_this_one() -> None:
    """A field this version does not know (number 100, text) is passed over: agents two minors behind keep working."""
    newer = pb.AwaitRoundResponse(round=8).SerializeToString() + bytes.fromhex("a20601 78")
    assert pb.AwaitRoundResponse.FromString(newer).round == 8


@pytest.mark.parametrize(
    ("module", "service", "methods"),
    [
        (
            pb,
            "FederationService",
            "Join(1-1) AwaitRound(1-1) FetchAdapter(1-n) BeginUpload(1-1) UploadDelta(n-1) ReportEvaluation(1-1) Probe(1-1)",
        ),
        (
            co,
            "CoordinatorService",
            "GetStatus(1-1) ListRounds(1-1) Pause(1-1) Resume(1-1) Evict(1-1) Rollback(1-1)",
        ),
    ],
)
def test_no_call_is_renamed_and_none_stays_open(module: Any, service: str, methods: str) -> None:
    """The path of a call is its name on the wire; no call streams both ways, so none has to live for hours."""
    descriptor = module.DESCRIPTOR.services_by_name[service]
    assert descriptor.full_name == f"med_duallora.v1.{service}"
    there = (
        f"{m.name}({'n' if m.client_streaming else 1}-{'n' if m.server_streaming else 1})" for m in descriptor.methods
    )
    assert " ".join(there) == methods
