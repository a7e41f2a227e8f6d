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
"""The benchmark of the MLA up projections: its cases, goals, section and plot."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from w4afp8.bench.command import RESULTS
from w4afp8.bench.mla_cases import FLOAT8_TOKENS, HEADS, TOKENS, MLACase, mla_cases, mla_verdict
from w4afp8.bench.mla_tables import FIGURE, mla_section
from w4afp8.bench.report import BEGIN, END, block_of, write_documents
from w4afp8.bench.rows import Machine, read_rows, write_rows

pytestmark = pytest.mark.cpu_only

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
MACHINE = Machine("a GPU", "1.2", "13.0", "abc1234")
CEILINGS = {"hbm_gbs": 3177.0, "tensor_tflops": 709.0}


def mla_row(case: MLACase, us: float, **others: Any) -> dict[str, Any]:
    values = {"us": us, "peer": "torch.bmm", "peer_us": 2 * us, "error": 2e-4, **others}
    return MACHINE.row("mla", {**CEILINGS, **case.row_values(), **values})


@pytest.mark.parametrize(
    ("op", "heads", "tokens", "floor"),
    [  # 4.25 bits a weight and 16 of everything else, over 3177 GB/s, or 2810 with many rows
        ("k_up", 16, 1, (16 * 65536 * 17 / 32 + 16 * 1280) / 3177e3),
        ("v_up", 16, 512, (16 * 65536 * 17 / 32 + 512 * 16 * 1280) / 3177e3),
        ("k_up", 128, 256, (128 * 65536 * 17 / 32 + 256 * 128 * 1280) / 3177e3),
        ("v_up", 128, 512, (128 * 65536 * 17 / 32 + 512 * 128 * 1280) / 2810e3),
    ],
)
def test_floor(op: Any, heads: int, tokens: int, floor: float) -> None:
    assert MLACase(op, heads, tokens).floor_us() == pytest.approx(floor)


def test_cases_are_all_heads_tokens_and_both_products() -> None:
    every = [case for cases in mla_cases() for case in cases]
    main = [case for case in every if case.out_dtype == "bfloat16" and not case.is_float8]
    assert len(main) == len(set(main)) == 2 * len(HEADS) * len(TOKENS) == 88
    assert sum(case.is_float8 for case in every) == 2 * len(HEADS) * len(FLOAT8_TOKENS)
    for cases in mla_cases():
        assert len({(case.op, case.heads, case.tokens) for case in cases}) == 1


def test_a_row_gives_its_case_back() -> None:
    for change in ({"out_dtype": "float16"}, {"act_scale": "token"}):
        case = MLACase("v_up", 32, 64, **change)
        assert MLACase.from_row(mla_row(case, 4.0)) == case


def test_float8_activations_are_half_the_bytes() -> None:
    case = MLACase("v_up", 128, 8192, act_scale="token")
    rows = 128 * 8192
    assert case.moved_bytes() == 128 * 65536 * 17 // 32 + rows * (512 + 4 + 256)
    assert case.floor_us() == pytest.approx(case.moved_bytes() / 2810e3)
    assert mla_verdict(mla_row(case, 300.0)) is None


@pytest.mark.parametrize(
    ("tokens", "us", "peer_us", "met"),
    [
        (64, 7.3, 9.0, True),  # floor 4.70: 7.20, and 2% of it
        (64, 7.4, 9.0, False),
        (64, 7.0, 6.9, False),  # slower than the peer
        (256, 17.4, 25.0, True),  # floor 14.60: 17.10
        (256, 17.6, 25.0, False),
        (512, 33.6, 40.0, True),  # many rows: floor 31.4, 1.05 times that is 33.0, and 2% of it
        (512, 33.7, 40.0, False),
        (512, 33.0, 32.4, True),  # 1.02 times the peer
        (512, 33.0, 32.3, False),
    ],
)
def test_verdict(tokens: int, us: float, peer_us: float, met: bool) -> None:
    found = mla_verdict(mla_row(MLACase("k_up", 128, tokens), us, peer_us=peer_us))
    assert found is not None
    assert found.met is met


def test_a_slower_card_has_later_goals() -> None:
    row = mla_row(MLACase("k_up", 128, 256), 17.6, peer_us=25.0)
    found = mla_verdict({**row, "hbm_gbs": 3000.0})
    assert found is not None
    assert found.met
    assert mla_verdict({**row, "peer_us": None}) is None


def test_section() -> None:
    case, half = MLACase("k_up", 128, 64), MLACase("k_up", 128, 64, out_dtype="float16")
    text = mla_section(
        [mla_row(case, 7.0), mla_row(half, 8.0), mla_row(MLACase("v_up", 128, 64), 9.0, peer_us=8)]
    )
    # 14.9 MB in 7 us are 2135 GB/s.
    assert "|k_up, 128|64|7.0|2135|4.7|67%|7.2|yes|14.0|2.00|8.0|**no**|" in text
    assert "|v_up, 128|64|9.0|1660|4.7|52%|7.2|**no**|8.0|0.89|||" in text
    assert "- goals met: 1 of 3\n- rows slower than torch.bmm in BF16: 1 of 3\n" in text
    assert "- results outside their error bound: 0 of 3" in text
    assert "FP8 activations" not in text
    float8 = mla_row(MLACase("k_up", 128, 64, act_scale="token"), 3.5, error=3e-2)
    text = mla_section([mla_row(case, 7.0), mla_row(half, 8.0), float8])
    assert "- goals met: 1 of 2\n- rows slower than torch.bmm in BF16: 0 of 2\n" in text
    assert text.endswith("|k_up, 128|64|3.5|4.4|7.0|2.00|3.0e-02|2.0e-04|")
    wrong = mla_section([mla_row(case, 7.0, error=float("nan"))])
    assert "- results outside their error bound: 1 of 1" in wrong


def test_without_rows_there_is_no_section(tmp_path: pathlib.Path) -> None:
    assert mla_section([]) == ""
    for name in ("performance.md", "numerics.md"):
        (tmp_path / name).write_text(f"{BEGIN}\n\n{END}\n")
    write_documents(tmp_path, tmp_path)
    assert "MLA" not in (tmp_path / "performance.md").read_text()


def test_report_writes_section_and_plot(tmp_path: pathlib.Path) -> None:
    for name in ("performance.md", "numerics.md"):
        (tmp_path / name).write_text(f"{BEGIN}\n\n{END}\n")
    cases = [case for cases in mla_cases() for case in cases]
    rows = [mla_row(case, case.floor_us() + 2) for case in cases]
    write_rows(tmp_path / "mla.jsonl", rows, append=False)
    write_documents(tmp_path, tmp_path)
    block = block_of((tmp_path / "performance.md").read_text())
    assert block.endswith(mla_section(rows))
    picture = (tmp_path / "figures" / FIGURE).read_bytes()
    assert 0 < len(picture) < 150_000
    write_documents(tmp_path, tmp_path)
    assert picture == (tmp_path / "figures" / FIGURE).read_bytes()


def test_the_committed_rows_are_whole() -> None:
    """Where they are there: one full run, no result outside its bound, and its figure beside."""
    rows = read_rows(RESULTS / "mla.jsonl")
    found = [MLACase.from_row(row) for row in rows]
    every = [case for cases in mla_cases() for case in cases]
    assert not rows or found in (every, [case for case in every if not case.is_float8])
    assert all("H100 80GB" in row["gpu"] and row["error"] <= row["error_bound"] for row in rows)
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    assert bool(re.search(re.escape(f"(figures/{FIGURE})"), text)) == bool(rows)
    assert (DOCS / "figures" / FIGURE).is_file() == bool(rows)
