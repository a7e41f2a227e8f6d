# Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The layer's benchmark: its cases, goals, tables and plot, from rows made by hand."""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

import pytest

from w4afp8.bench.command import add_parser
from w4afp8.bench.moe_cases import (
    FORMATS,
    GEMMS,
    KERNELS,
    MODELS,
    MoECase,
    layer_error_bound,
    models_named,
    popularity_ranks,
)
from w4afp8.bench.moe_goals import layer_verdict, outside_us
from w4afp8.bench.moe_plot import write_layer_plot
from w4afp8.bench.moe_tables import FIGURE, layer_parts
from w4afp8.bench.performance_tables import performance_block
from w4afp8.bench.report import BEGIN, END, block_of, write_documents
from w4afp8.bench.routing import even_split
from w4afp8.bench.rows import MOE_KEYS, Machine, write_rows
from w4afp8.layers.experts import fuses_activation

pytestmark = pytest.mark.cpu_only

DEEPSEEK, QWEN, GPT_OSS, GLM = MODELS
MACHINE = Machine("a GPU", "1.2", "13.0", "abc1234")
CEILINGS = {"hbm_gbs": 3177.0, "tensor_tflops": 1500.0}


def even_case(model: Any, tokens: int, weight_format: Any = "int4") -> MoECase:
    counts = even_split(model.expected_slots(tokens), model.experts)
    return MoECase(model, tokens, counts, weight_format)


def layer_row(case: MoECase, us: float, gemm_us: float, **others: Any) -> dict[str, Any]:
    values = {
        **case.row_values(),
        **{"us": us, "gemm_us": gemm_us, "error": 0.04},
        "kernels_us": dict.fromkeys(KERNELS, us / 8),
        **{"peer": "PyTorch BF16", "peer_us": 2 * us, "peers_us": {"PyTorch BF16": 2 * us}},
        **others,
    }
    return MACHINE.row("moe", {**CEILINGS, **values}, extra_keys=MOE_KEYS)


def all_rows() -> list[dict[str, Any]]:
    """Every case; outside of the GEMMs a tenth of the layer's time."""
    return [
        layer_row(even_case(model, tokens, form), 100.0 + tokens, 0.9 * (100.0 + tokens))
        for model in MODELS
        for tokens in model.tokens()
        for form in FORMATS
    ]


def test_each_model_has_a_number_of_tokens_that_gives_64_an_expert() -> None:
    expected = {DEEPSEEK: 2048, QWEN: 1024, GPT_OSS: 2048, GLM: 1280}
    for model, tokens in expected.items():
        assert tokens in model.tokens()
        assert even_case(model, tokens).tokens_per_expert == 64
        assert even_case(model, tokens).slots == 64 * model.experts


def test_a_rank_gets_its_share_of_copies() -> None:
    assert DEEPSEEK.expected_slots(512) == 512  # 8 copies of each, one rank of 8
    assert QWEN.expected_slots(512) == 4096
    assert GPT_OSS.expected_slots(1) == 1  # half a copy


def test_bytes_around_the_products() -> None:
    moved = MoECase(DEEPSEEK, 100, (3,) * 32).moved_bytes()
    assert moved["route"] == 100 * (256 * 4 + 8 * (4 + 4))
    assert moved["dispatch"] == 100 * (7168 * 2 + 8 * 4) + 96 * 7168
    assert moved["activation"] == 96 * (2 * 2048 * 2 + 2048)
    assert moved["combine"] == 96 * 7168 * 2 + 100 * 7168 * 2


def test_products_with_many_outputs_apply_the_activation() -> None:
    least = -(-(40 << 20) // (2 * 2 * 768 * 8))  # tokens of 8 copies, each of 1536 outputs
    few, many = (even_case(QWEN, tokens, "int4") for tokens in (least - 1, least))
    assert (few.fuses, many.fuses) == (False, True)
    assert [gemm.is_gated for gemm in few.gemms()] == [False, False]
    assert [gemm.is_gated for gemm in many.gemms()] == [True, False]
    widths = [case.moved_bytes()["activation"] / case.slots for case in (few, many)]
    assert widths == [2 * 768 * 2 + 768, 768 * 2 + 768]


@pytest.mark.parametrize(("in_features", "least"), [(4064, 40 << 20), (4096, 20 << 20)])
def test_fewer_outputs_suffice_with_many_in_features(in_features: int, least: int) -> None:
    rows = least // (2 * 1024)
    fuses = [fuses_activation(n, 1024, in_features) for n in (rows - 1, rows)]
    assert fuses == [False, True]
    assert not fuses_activation(2 * rows, 1024 + 64, in_features)


def test_floors_are_those_of_the_launches() -> None:
    case = even_case(QWEN, 4096, "mxfp4")
    floors = case.floors_us()
    assert tuple(floors) == KERNELS
    assert [floors[name] for name in GEMMS] == [gemm.floor_us() for gemm in case.gemms()]
    assert floors["combine"] == case.moved_bytes()["combine"] / 2810e3
    first, second = case.gemms()
    assert (first.out_features, first.in_features) == (2 * 768, 2048)
    assert (second.out_features, second.in_features) == (2048, 768)
    assert case.fuses
    assert first.moved_bytes() == first.weight_bytes() + first.tokens * (2048 + 768 * 2)
    assert second.moved_bytes() == second.weight_bytes() + second.tokens * (768 + 2048 * 2)
    assert case.row_values()["floor_us"] == pytest.approx(sum(floors.values()), abs=0.005)


def test_idle_experts_are_not_read() -> None:
    one_busy = MoECase(GLM, 1, (1,) + (0,) * 19)
    assert one_busy.gemms()[0].weight_bytes() == 3072 * 5120 // 2 + 4 * 3072


def test_error_bound_is_that_of_three_roundings_to_fp8() -> None:
    # Half a unit, 2^-4 of the binade: 2.65% each. The first goes through SwiGLU.
    many = 10**12
    fp8 = math.sqrt(0.541 / 3) / 16
    assert layer_error_bound(0.0, 0.0, many) == pytest.approx(math.sqrt(3.07) * fp8, rel=0.01)
    assert layer_error_bound(0.01, 0.0, many) > layer_error_bound(0.0, 0.0, many)
    assert layer_error_bound(0.0, 0.0, 768) > 1.3 * layer_error_bound(0.0, 0.0, many)
    assert all(
        0.04 < even_case(model, tokens).error_bound() < 0.07
        for model in MODELS
        for tokens in model.tokens()
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_popular_experts_are_spread_over_the_ranks(model: Any) -> None:
    places = popularity_ranks(model)
    assert sorted(places) == list(range(model.router_experts))
    share = [(place + 1) ** -0.5 for place in places]
    own = sum(share[: model.experts]) / sum(share)
    assert own == pytest.approx(1 / model.ranks, rel=0.06)


def test_models_by_name() -> None:
    assert models_named(["GLM-4.5", "DeepSeek-V3"]) == [DEEPSEEK, GLM]


def test_what_the_goals_are() -> None:
    deepseek, qwen = even_case(DEEPSEEK, 2048), even_case(QWEN, 1024)
    for case, part in ((deepseek, 0.15), (qwen, 0.20)):
        least = layer_row(case, 100.0, 100.0 * (1 - part) + 0.01)
        found = layer_verdict(least)
        assert found is not None
        assert found.goal_us == pytest.approx(100 * part)
        assert found.met
        assert not layer_verdict(layer_row(case, 100.0, 100.0 * (1 - part) - 0.01)).met  # type: ignore[union-attr]
    one = layer_row(even_case(GLM, 1), 50.0, 38.0)
    assert outside_us(one) == 12
    assert layer_verdict(one).met  # type: ignore[union-attr]
    assert not layer_verdict({**one, "gemm_us": 37.9}).met  # type: ignore[union-attr]
    assert layer_verdict(layer_row(even_case(GLM, 1280), 50.0, 1.0)) is None
    assert layer_verdict(layer_row(even_case(QWEN, 2048), 50.0, 1.0)) is None


def test_no_rows_no_section() -> None:
    assert layer_parts([]) == []
    assert "Layer" not in performance_block([])


def test_summary_counts() -> None:
    rows = all_rows()
    rows[0] = {**rows[0], "gemm_us": 1.0}  # one token
    rows[2] = {**rows[2], "error": float("nan")}
    rows[4] = {**rows[4], "peer_us": 1.0}
    rows[5] = {**rows[5], "peer": None, "peer_us": None, "peers_us": {}}
    text = performance_block([], layer=rows)
    # One token in 4 models, 64 an expert in 2, in 2 formats.
    assert "- goals met: 11 of 12\n" in text
    assert f"beside them: 1 of {len(rows) - 1}; without one: 1\n" in text
    assert f"- results outside their error bound: 1 of {len(rows)}" in text


def test_lines_of_the_tables() -> None:
    int4 = layer_row(
        even_case(DEEPSEEK, 2048),
        *(300.0, 250.0),
        kernels_us={name: 10.0 + i for i, name in enumerate(KERNELS)},
        peers_us={"PyTorch BF16": 1000.0, "DeepGEMM FP8": 700.5},
    )
    mxfp4 = layer_row(even_case(DEEPSEEK, 2048, "mxfp4"), 310.0, 270.0, peers_us={})
    text = performance_block([], layer=[int4, mxfp4])
    assert "|DeepSeek-V3 EP8|2048|2048|64|int4|300.0|250.0|50.0|17%|45.0|**no**|" in text
    assert "|DeepSeek-V3 EP8|2048|2048|64|mxfp4|310.0|270.0|40.0|13%|46.5|yes|" in text
    # Route: 2048 * (1024 + 64) bytes over 2810 GB/s.
    assert "|DeepSeek-V3 EP8|2048|int4|10.0 / 0.8|11.0 / 15.7|12.0 /" in text
    assert "|PyTorch BF16 us|DeepGEMM FP8 us|" in text
    assert "|DeepSeek-V3 EP8|2048|300.0|250.0|310.0|270.0|1000.0|700.5|" in text


def test_the_activation_with_a_hadamard_transform_has_a_line_for_both_formats() -> None:
    rows = [layer_row(even_case(GLM, 64, form), 80.0, 70.0, hadamard_us=3.25) for form in FORMATS]
    text = performance_block([], layer=rows)
    # 64 copies of 1536 features, 5 bytes each, over 2810 GB/s.
    assert text.count("|GLM-4.5 EP8|64|512|3.2|10.0|0.2|") == 1
    assert [model.hadamard_block_size for model in MODELS] == [512, 256, 64, 512]
    without = performance_block([], layer=[layer_row(even_case(GLM, 64), 80.0, 70.0)])
    assert "Hadamard" not in without


def test_a_row_says_its_shape() -> None:
    row = layer_row(even_case(GPT_OSS, 64, "mxfp4"), 1.0, 1.0)
    assert (row["hidden"], row["intermediate"], row["router_experts"]) == (2880, 2880, 128)
    assert (row["experts"], row["topk"], row["slots"], row["group_size"]) == (16, 4, 32, 32)


def test_plot_is_the_same_for_the_same_rows(tmp_path: pathlib.Path) -> None:
    rows = all_rows()
    pictures = []
    for name in ("a", "b"):
        write_layer_plot(rows, tmp_path / name)
        pictures.append((tmp_path / name / FIGURE).read_bytes())
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) < 100_000


def test_report_has_the_layer(tmp_path: pathlib.Path) -> None:
    results, docs = tmp_path / "rows", tmp_path / "docs"
    docs.mkdir()
    for name in ("performance.md", "numerics.md"):
        (docs / name).write_text(f"{BEGIN}\nold\n{END}\n")
    write_documents(results, docs)
    assert not (docs / "figures").exists()
    write_rows(results / "moe.jsonl", all_rows(), append=False)
    write_documents(results, docs)
    block = block_of((docs / "performance.md").read_text())
    assert "\n\n".join(layer_parts(all_rows())).splitlines()[0] in block
    assert (docs / "figures" / FIGURE).is_file()


def test_options_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    words = ["bench", "moe", "--models", "GLM-4.5", "--time-limit", "150", "--commit", "abc1234"]
    options = parser.parse_args(words)
    assert (options.kind, options.models, options.rounds) == ("moe", ["GLM-4.5"], 3)
    assert (options.rows, options.time_limit) == (pathlib.Path("moe.jsonl"), 150)
    assert parser.parse_args(["bench", "moe"]).models == [model.name for model in MODELS]
    with pytest.raises(SystemExit):
        parser.parse_args(["bench", "moe", "--models", "GLM"])
