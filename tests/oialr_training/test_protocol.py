"""One JSON object a line, and nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from oialr_training.errors import ProtocolError
from oialr_training.protocol import (
    MAX_RECORDS,
    RESULT_FILE,
    Completed,
    Epoch,
    Evaluate,
    EventReader,
    Failed,
    Observation,
    Prepare,
    Progressed,
    RankUpdate,
    Ready,
    Resources,
    Started,
    Stop,
    Stopped,
    decode,
    encode,
    write_result,
)

UPDATE = RankUpdate(step=3, layer="a", inner_rank=2, full_inner_rank=4, stability=0.5)
SEEN = Observation(
    step=3,
    earlier_step=1,
    layer="a",
    stability=0.5,
    mixing_similarity=0.25,
    relative_mixing_similarity=0.125,
)
COMPLETED = Completed(
    metrics={"validation_loss": 0.1 + 0.2},
    trainable_percent=10.0,
    compression_percent=20.0,
    device="cpu",
    duration_s=1.5,
    at=2.0,
)
USED = Resources(gpu_energy_j=0.5, peak_host_memory_bytes=2**40, samples_per_s=1e5)


@pytest.mark.parametrize(
    "message",
    [
        Prepare(config={"epochs": 1}, data_dir=None),
        Evaluate(config={"text": "line\nbreak"}, folder="/x"),
        Evaluate(config={}, folder="/x", state_file="/x/state"),
        Stop(reason="pruned"),
        Ready(),
        Progressed(step=3),
        Stopped(epoch=2, reason="pruned"),
        Started(at=1.0, total_steps=3, parameters=4, layers="all", warnings=["w"]),
        Started(at=1.0, total_steps=3, parameters=4, layers="all", device="cuda:1"),
        Epoch(epoch=1, step=2, metrics={"a": 0.1}, rank_updates=[UPDATE], observations=[SEEN]),
        COMPLETED,
        replace(COMPLETED, resources=USED),
        Failed(reason="r", at=1.0, cause="configuration"),
        Failed(reason="r", at=1.0, cause="machine", resources=USED),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_sent_arrives(message: object) -> None:
    line = encode(message)  # type: ignore[arg-type]
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    "line",
    [b"", b"text", b"[]", b"{}", b'{"type": "other"}', b'{"type": "ready", "more": 1}', b"\xff"],
)
def test_garbage_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(line)


@pytest.mark.parametrize("num_updates", [0, 1, MAX_RECORDS, 2 * MAX_RECORDS + 1])
@pytest.mark.parametrize("num_observations", [0, 1, MAX_RECORDS, 3 * MAX_RECORDS - 1])
def test_an_epoch_of_any_size_arrives_whole_in_lines_that_stay_short(
    num_updates: int, num_observations: int
) -> None:
    updates = [replace(UPDATE, step=n) for n in range(num_updates)]
    observations = [replace(SEEN, step=n) for n in range(num_observations)]
    epoch = Epoch(
        epoch=1, step=2, metrics={"a": 0.1}, rank_updates=updates, observations=observations
    )
    lines = encode(epoch).splitlines()
    assert max(map(len, lines)) < 150_000
    assert len(lines) == max(-(-(num_updates + num_observations) // MAX_RECORDS), 1)
    reader = EventReader()  # which may be handed them one by one
    events = [event for line in lines for event in reader.read([line])]
    assert events == [epoch]
    assert list(reader.read([encode(Epoch(epoch=2, step=4, metrics={}))])) == [
        Epoch(epoch=2, step=4, metrics={})
    ]


def test_an_epoch_of_version_0_1_0_has_the_relative_similarity_under_its_name() -> None:
    """Literally as that version wrote it."""
    (event,) = EventReader().read(
        [
            '{"type": "epoch", "epoch": 1, "step": 13, "metrics": {"lr": 0.1}, "rank_updates": [], '
            '"observations": [{"step": 10, "earlier_step": 5, "layer": "head", "stability": 0.5, '
            '"mixing_similarity": 0.25}]}'
        ]
    )
    (seen,) = event.observations
    assert math.isnan(seen.mixing_similarity)
    assert seen.relative_mixing_similarity == 0.25
    line = '{"type": "started", "at": 1.0, "total_steps": 3, "parameters": 4, "layers": "all"}'
    assert decode(line).device is None
    assert decode('{"type": "stopped", "epoch": 2}').reason == decode('{"type": "stop"}').reason


def test_each_figure_of_the_resources_says_what_it_is() -> None:
    assert all(figure.metadata.keys() == {"label", "unit"} for figure in fields(Resources))


def test_a_result_from_before_resources_were_measured_is_read() -> None:
    content = json.loads(encode(COMPLETED))
    del content["resources"]
    assert decode(json.dumps(content)) == COMPLETED


def test_a_result_is_whole_or_not_there(tmp_path: Path) -> None:
    write_result(tmp_path, COMPLETED)
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]
    assert decode((tmp_path / RESULT_FILE).read_bytes()) == COMPLETED


def test_a_result_without_room_leaves_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).mkdir()
    with pytest.raises(OSError, match=RESULT_FILE):
        write_result(tmp_path, COMPLETED)
    assert [path.name for path in tmp_path.iterdir()] == [RESULT_FILE]
