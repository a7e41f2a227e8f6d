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
"""Which tile the grouped GEMM chooses, and which block multiplies which tiles in what order.

The plan is made on the device from headers that compile for the host too: tile_plan.cc prints what
they say. A case that fails is named by its line: give it to that program to see its tiles.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby

import numpy as np
import pytest

from w4afp8.testing.gemm_inputs import HELPED, IN_PARTS, LARGE_HINT, LARGE_IN_PARTS

pytestmark = pytest.mark.cpu_only

HERE = pathlib.Path(__file__).resolve().parent
HEAD = re.compile(
    r"\w+, (\d+) x (\d+), widths([ \d]+), cluster of (\d+)(.*)\n"
    r"(\d+) heavy, (\d+) light, (\d+) paused, halves from (\d+), taken from (\d+), "
    r"token groups of (\d+), "
    r"(\d+) high up to expert (\d+), then (\d+)\n?"
)
TILE = re.compile(
    r"cluster (-?\d+), place (\d+): (\w+), expert (\d+), sub-blocks (\d+) \+ (\d+), "
    r"rows (\d+) \+ (-?\d+), k blocks (\d+) \+ (\d+), width (\d+)(, alone)?(, pauses)?"
)
# Outputs x tokens.
SIZES = "decode 256 x 16, small 256 x 64, medium 256 x 128, large 128 x 256, promoted 128 x 128"
LARGE_PARTS = ("large_parts", "grouped_parts")
PARTS = ("parts", *LARGE_PARTS)  # that may be in two parts; the first are medium
LARGE = ("large", "grouped", "grouped_rounded", *LARGE_PARTS)
TILES = [*(size.split()[0] for size in SIZES.split(", ")), *LARGE[1:], "parts", "helped"]
HINTS = (0, 4, 5, 64, 65, 128, 129, 192, 193, 448, 449, 768, 769)
FEW = "decode decode small small"
# Up to so many tokens tiles are medium.
TO_192, TO_448, TO_768, TO_ANY = (
    FEW + medium * " medium" + (9 - medium) * " large" for medium in (4, 6, 8, 9)
)
PROMOTED = FEW + 9 * " promoted"
CHOICES = f"""
4096 7168 int4 none -1 bfloat16 default none: {TO_192}
4064 7168 int4 none -1 bfloat16 default none: {TO_448}
288 7168 int4 none -1 bfloat16 default none: {TO_448}
256 7168 int4 none -1 bfloat16 default none: {TO_ANY}
4096 7168 int4 none -1 bfloat16 default swiglu: {TO_768}
4096 7168 mxfp4 e8m0 32 bfloat16 default swiglu: {TO_768}
4064 7168 int4 none -1 bfloat16 default swiglu: {TO_ANY}
4064 7168 mxfp4 e8m0 32 float16 default swiglu: {TO_ANY}
256 7168 mxfp4 e8m0 32 bfloat16 default swiglu: {TO_ANY}
4096 7168 int4 none -1 float16 default swiglu: {TO_768}
4096 7168 int4 float32 128 bfloat16 default none: {TO_448}
4096 7168 int4 float32 64 bfloat16 default none: {PROMOTED}
1024 7168 int4 bfloat16 256 bfloat16 default none: {TO_448}
128 7168 int4 bfloat16 128 bfloat16 default none: {TO_ANY}
4096 7168 mxfp4 e8m0 32 bfloat16 default none: {TO_192}
1024 7168 mxfp4 e8m0 32 bfloat16 default none: {TO_448}
32 7168 mxfp4 e8m0 32 bfloat16 default none: {TO_ANY}
1024 7168 mxfp4 e8m0 32 float16 default none: {TO_768}
992 7168 mxfp4 e8m0 32 float16 default none: {TO_ANY}
992 7168 mxfp4 e8m0 32 float16 half none: {TO_448}
4096 616 mxfp4 e8m0 32 bfloat16 default none: {TO_192}
4096 608 mxfp4 e8m0 32 bfloat16 default none: {TO_ANY}
4096 1160 mxfp4 e8m0 32 float16 default none: {TO_768}
4096 1152 mxfp4 e8m0 32 float16 default none: {TO_ANY}
4096 1160 int4 none -1 bfloat16 default none: {TO_192}
4096 1152 int4 none -1 bfloat16 default none: {TO_ANY}
4096 7168 int4 none -1 float16 default none: {TO_768}
4096 7168 int4 none -1 float16 half none: {TO_192}
4096 7168 int4 none -1 bfloat16 float32 none: {PROMOTED}
4096 7168 int4 float32 64 bfloat16 half none: {PROMOTED}
4096 7168 mxfp4 e8m0 32 float16 default none: {TO_768}
4096 7168 int4 float32 128 float16 default none: {PROMOTED}
"""  # in_features, out_features, format, scales, group_size, output, accumulation, activation
UNHINTED = """
decode: 0 32 8, 4 32 8
small: 0 33 8, 0 512 8, 64 512 8
medium: 0 513 8, 0 100 0, 65 520 8, 9999 79992 8, 0 1536 8
large: 0 1537 8
"""  # padding, rows, experts of mxfp4
INT4, GROUPS, MXFP4 = "int4 none -1", "int4 bfloat16 128", "mxfp4 e8m0 32"
SHAPES = {  # max_tokens, padding, rows, experts, in_features, out_features; what each format has
    "1 0 100 8 1024 7168": "helped helped helped",
    "1 0 100 8 992 7168": "decode decode decode",
    "64 0 100 8 4096 7168": "small small small",
    "128 0 2304 18 992 7168": "parts medium parts",  # 504 full tiles, four waves are 528
    "128 0 2432 19 4096 7168": "medium medium medium",  # 532
    "769 0 9472 37 4096 7168": "large_parts grouped grouped_parts",  # 1036, 16 waves are 1056
    "769 0 9472 37 4064 7168": "large grouped grouped",
    "769 0 9473 37 4096 7168": "large grouped grouped",  # 1064
    "769 0 30000 8 256 7168": "medium medium medium",
}
OTHER_SHAPES = {  # the same with another output, accumulation or activation, with int4
    "bfloat16 default swiglu": "decode decode small medium medium rounded medium rounded medium",
    "float16 half none": "helped decode small parts medium large_parts large large medium",
    "float16 default none": "decode decode small medium medium"
    + 3 * " grouped_rounded"
    + " medium",
    "bfloat16 float32 none": "decode decode small" + 6 * " promoted",
}
GROUP_BYTES = 12 << 20  # of activations that stay in L2


@dataclasses.dataclass(frozen=True)
class Tile:
    kind: str  # heavy, half or light
    alone: bool
    pauses: bool  # it is the first part
    cluster: int  # -1: taken, by any
    place: int  # in the order in which tiles are multiplied
    expert: int
    sub_block: int
    sub_blocks: int  # of one block of the cluster
    row: int
    tokens: int
    k_begin: int
    k_blocks: int
    width: int

    @property
    def whole(self) -> tuple[int, ...]:
        """What both parts have."""
        return (self.expert, self.sub_block, self.sub_blocks, self.row, self.tokens, self.width)


@dataclasses.dataclass(frozen=True)
class Case:
    tile: str
    activation: str
    in_features: int
    out_features: int
    clusters: int
    tall_experts: int
    may_take: int
    may_pause: int
    padding: int
    counts: tuple[int, ...]

    @property
    def line(self) -> str:
        return " ".join(["plan", *map(str, dataclasses.astuple(self)[:-1] + self.counts)])

    @property
    def height_step(self) -> int:
        """Sub-blocks come in pairs of gates and what they let through."""
        return 1 if self.activation == "none" else 2

    @property
    def sub_blocks(self) -> int:
        return -(-self.out_features // 64)

    @property
    def k_blocks(self) -> int:
        return -(-self.in_features // 128)

    @property
    def halves(self) -> int:
        """Halves of k blocks."""
        return -(-self.in_features // 64)

    def halves_of(self, k_block: int) -> int:
        """The last k block may be half a one."""
        return min(self.halves - 2 * k_block, 2)

    def begin_of(self, expert: int) -> int:
        return expert * self.padding if self.padding else sum(self.counts[:expert])


@dataclasses.dataclass(frozen=True)
class Plan:
    case: Case
    tiles: list[Tile]  # cluster by cluster, each in its order; without empty halves
    widths: list[int]
    traits: str
    out: int  # of one block's tile
    tokens: int
    blocks: int  # of a cluster
    heavy: int
    light: int
    paused: int  # so many tiles are in two parts
    whole: int
    taken_begin: int  # the place of the first tile that is taken
    token_group: int
    tall: int  # sub-blocks of the tiles of the first `tall_experts`
    tall_experts: int
    low: int  # sub-blocks of the tiles of the others

    @property
    def three_quarter_tiles(self) -> int:
        """So many tiles of an expert may all be of three quarters."""
        match = re.search(r", (\d+) of three quarters", self.traits)
        assert match, self.traits
        return int(match[1])

    @property
    def light_most(self) -> int:
        """Tokens that a light expert may have."""
        if "wide" not in self.traits:
            return -1
        if self.tokens == 128 and max(self.case.counts) > self.tokens:
            return self.tokens
        return self.tokens // 2

    def widths_of(self, count: int) -> set[int]:
        """Of an expert's tiles, if none are in parts."""
        tiles, each = -(-count // self.tokens), self.tokens
        if 1 < tiles <= self.three_quarter_tiles and count <= tiles * each * 3 // 4:
            each = each * 3 // 4
        last = count - (tiles - 1) * each
        return {min(w for w in self.widths if w >= last)} | ({each} if tiles > 1 else set())

    @property
    def dealt(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.cluster >= 0]

    @property
    def taken(self) -> list[Tile]:
        return [tile for tile in self.tiles if tile.cluster < 0]

    @property
    def differ(self) -> bool:
        """Wide tiles are not all as long as each other."""
        widths = {tile.width for tile in self.tiles if tile.kind == "heavy"}
        return "wide" in self.traits and (self.light > 0 or len(widths) > 1)

    @property
    def token_tiles(self) -> int:
        return sum(-(-count // self.tokens) for count in self.case.counts)

    @property
    def enough_helped(self) -> int:
        """Token tiles whose tiles of one sub-block make a wave and a half of tall ones."""
        return -(-6 * self.case.clusters // self.case.sub_blocks)

    @property
    def helped_token_tiles(self) -> int:
        """So many token tiles, the last ones, should have tiles of one sub-block, to even out."""
        tiles, wave, is_long = self.tiles_of(4), self.case.clusters, self.case.k_blocks >= 32
        if tiles <= wave:
            evens = is_long and 3 * wave <= 8 * tiles and 6 * tiles <= 5 * wave
        else:
            evens = 0 < 2 * (tiles % wave) <= wave or (is_long and tiles <= 2 * wave)
        helps = evens and "may help" in self.traits
        return min(self.token_tiles, self.enough_helped) if helps else 0

    def tiles_of(self, height: int) -> int:
        """How many there would be, all with so many sub-blocks a block."""
        return self.token_tiles * -(-self.case.sub_blocks // (height * self.blocks))


def read_tile(line: str) -> Tile:
    match = TILE.fullmatch(line)
    assert match, line
    numbers = map(int, match.group(1, 2, *range(4, 12)))
    return Tile(match[3], match[12] is not None, match[13] is not None, *numbers)


def read_plan(case: Case, text: str) -> Plan:
    head = HEAD.match(text)
    assert head, text
    tiles = [read_tile(line) for line in text[head.end() :].splitlines()]
    # The scheduler passes over halves without tokens: their other half has them all.
    assert all(tile.tokens > 0 or tile.kind == "half" for tile in tiles), case.line
    places = sorted(tile.place for tile in tiles)
    assert places == list(range(sum(map(int, head.group(6, 7, 8))))), case.line
    tiles = [tile for tile in tiles if tile.tokens > 0]
    numbers = map(int, head.group(1, 2, 4, *range(6, 15)))
    return Plan(case, tiles, list(map(int, head[3].split())), head[5], *numbers)


def find_compiler() -> list[str]:
    """As the build of the extension: CXX, else what Python was built with, else c++ or g++."""
    for words in (os.environ.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++"):
        command = shlex.split(words or "")
        if command and shutil.which(command[0]):
            return command
    pytest.fail("no C++ compiler: the headers of the plan cannot be tested; install g++ or set CXX")


def run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    binary = str(tmp_path_factory.mktemp("tile_plan") / "tile_plan")
    flags = ["-std=c++17", "-O1", "-I", str(HERE.parents[1] / "gpu_ops"), "-o", binary]
    run([*find_compiler(), str(HERE / "tile_plan.cc"), *flags])
    return binary


def ask(program: str, lines: list[str]) -> list[str]:
    texts = run([program], "".join(f"{line}\n" for line in lines)).split("\n\n")[:-1]
    assert len(texts) == len(lines)
    return texts


def test_choices(program: str) -> None:
    expected = {}
    for row in CHOICES.strip().splitlines():
        case, tiles = row.split(": ")
        for hint, tile in zip(HINTS, tiles.split(), strict=True):
            expected[f"choose {hint} 0 100 8 {case} 132"] = tile
    for tile, cases in (row.split(": ") for row in UNHINTED.strip().splitlines()):
        for choice in cases.split(", "):
            expected[f"choose -1 {choice} 4096 7168 mxfp4 e8m0 32 bfloat16 default none 132"] = tile
    choices = [re.match(r"(\w+) as \w+, (\d+ x \d+),", text) for text in ask(program, [*expected])]
    kinds = [choice and choice[1] for choice in choices]
    assert dict(zip(expected, kinds, strict=True)) == expected
    assert {choice and f"{choice[1]} {choice[2]}" for choice in choices} == set(SIZES.split(", "))


def test_shapes_of_formats(program: str) -> None:
    """What a launch has of each kind of tile: test_choices has the kinds."""
    expected = {}
    for sizes, names in SHAPES.items():
        for form, name in zip((INT4, GROUPS, MXFP4), names.split(), strict=True):
            expected[f"choose {sizes} {form} bfloat16 default none 132"] = name
    for options, names in OTHER_SHAPES.items():
        for sizes, name in zip(SHAPES, names.split(), strict=True):
            expected[f"choose {sizes} {INT4} {options} 132"] = name
    shapes = [text.split(" as ")[1] for text in ask(program, list(expected))]
    chosen = [shape.split(",")[0] for shape in shapes]
    assert dict(zip(expected, chosen, strict=True)) == expected
    assert set(chosen) == {*TILES, "rounded"}
    # Elsewhere one more width costs more than it saves (kernel-log.md, runs 176 and 178).
    between = {name for name, shape in zip(chosen, shapes, strict=True) if " 224 192 160 " in shape}
    assert between == set(LARGE_PARTS)


def test_divisors_divide(program: str) -> None:
    source = random.Random(0)
    top = 2**31 - 1
    lines, expected = [], []
    for divisor in [*range(1, 140), 2**30 - 1, 2**30, 2**30 + 1, top - 1, top]:
        multiples = [divisor * source.randint(0, top // divisor) for _ in range(20)]
        near = [number + step for number in (*multiples, 0, top) for step in (-1, 0, 1)]
        dividends = [number for number in near if 0 <= number <= top]
        lines.append(f"divide {divisor} {' '.join(map(str, dividends))}")
        expected.append([part for number in dividends for part in divmod(number, divisor)])
    assert [list(map(int, text.split())) for text in ask(program, lines)] == expected


def test_the_last_values_that_were_made_are_found(program: str) -> None:
    """The last four. Where none can be made nothing is kept, and the oldest one lost."""
    source = random.Random(0)
    lines, expected = [], []
    for most in (3, 4, 5, 9):
        keys = [source.randint(-2, most) for _ in range(300)]
        kept: list[int] = []  # in the order in which they were made
        answers = []
        for key in keys:
            if key in kept:
                answers.append(f"{10 * key}")
                continue
            kept = kept[1:] if len(kept) == 4 else kept
            answers.append("none" if key < 0 else f"{10 * key} made")
            kept += [key] if key >= 0 else []
        lines.append(f"recent {' '.join(map(str, keys))}")
        expected.append(", ".join(answers))
    assert ask(program, lines) == expected


@pytest.mark.parametrize(("tile", "tokens"), [("small", 64), ("medium", 128)])
def test_lower_tiles_shorten_the_most_work(program: str, tile: str, tokens: int) -> None:
    source = random.Random(1)
    lines, expected = [], []
    for _ in range(200):
        step = source.choice([1, 2])  # with a gated activation
        out = source.choice([64, 192] if step == 1 else [128, 256])
        out = source.choice([out, 384, 512, 1536, 5760, 7168])
        clusters = source.randint(1, 132)
        counts = [source.randint(0, 900) for _ in range(source.randint(1, 9))]
        sub_blocks = -(-out // 64)
        tall = -(-sub_blocks // -(-sub_blocks // 4)) if tile == "medium" and sub_blocks > 4 else 4
        tall = round_up(tall, step)
        low = tall - step
        most = tokens if max(counts) > tokens else tokens // 2
        light = [tile == "medium" and 0 < count <= most for count in counts]
        token_tiles = [0 if few else -(-n // tokens) for few, n in zip(light, counts, strict=True)]
        tiles = {height: -(-sub_blocks // height) for height in (tall, low)}
        works = []
        for experts in range(len(counts) + 1):
            high = sum(token_tiles[:experts]) * tiles[tall]
            all_tiles = high + sum(token_tiles[experts:]) * tiles[low]
            waves = -(-high // clusters)
            low_waves = -(-all_tiles // clusters) - waves
            works.append(
                waves_work(sub_blocks, waves, tall) + waves_work(sub_blocks, low_waves, low)
            )
        may = not any(light) and sum(token_tiles) * tiles[tall] > clusters
        lines.append(f"lower {tile} {step} 2048 {out} {clusters} {' '.join(map(str, counts))}")
        expected.append([int(may), *works])
    assert [list(map(int, text.split())) for text in ask(program, lines)] == expected
    assert {row[0] for row in expected} == {0, 1}


@pytest.mark.parametrize("tokens", [144, 384, 768])
def test_pairs_left_over_lower_no_other_tiles(program: str, tokens: int) -> None:
    """gpt-oss' first projection: 45 pairs, two in a tile, of 32 experts.

    Tiles of one pair would fill waves better, but take well over half as long.
    """
    counts = [tokens] * 32
    line = f"lower medium 2 2880 5760 132 {' '.join(map(str, counts))}"
    _, *works = map(int, ask(program, [line])[0].split())
    assert min(works) == min(works[31:]) < works[0]


@pytest.mark.parametrize("tokens", [144, 384, 1024])
def test_tiles_that_are_short_anyway_lower_no_others(program: str, tokens: int) -> None:
    """GLM-4.5's first projection of one of 8 ranks: three pairs, which are tiles of two and of one.

    As long as two tiles of two pairs these would take more than three of one.
    """
    line = f"lower medium 2 5120 384 132 {' '.join(160 * [str(tokens)])}"
    _, *works = map(int, ask(program, [line])[0].split())
    assert min(works) == min(works[132:]) < works[0]


@pytest.mark.parametrize("experts", [100, 128])
def test_few_waves_take_as_long_as_their_tallest_tiles(program: str, experts: int) -> None:
    """Tiles of four and of two sub-blocks in two waves take longer than two of three."""
    line = f"lower small 1 2048 384 132 {' '.join(experts * ['16'])}"
    _, *works = map(int, ask(program, [line])[0].split())
    assert works[0] == min(works) < works[-1]


def waves_work(sub_blocks: int, waves: int, height: int) -> int:
    """In 2^-8 sub-blocks: as an expert's tiles take on average, but the last as long as any."""
    tiles = -(-sub_blocks // height)
    mean = 256 * (sub_blocks + tiles) // tiles
    return (waves - 1) * mean + 256 * (height + 1) if waves else 0


def round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def draw_case(random: random.Random) -> Case:
    tile = random.choice(TILES)
    ranges = [(0, 0), (1, 1), (2, 64), (65, 999), (1000, 3000)]
    counts = [random.randint(*random.choice(ranges)) for _ in range(random.randint(1, 9))]
    if random.random() < 0.5:  # even
        counts = counts[:1] * len(counts)
    if tile in LARGE and random.random() < 0.2:  # equal tiles
        counts = [random.randint(129, 256)] * len(counts)
    varies = tile in ("small", "medium", "parts") and random.random() < 0.5
    tall_experts = random.randint(0, len(counts)) if varies else len(counts)
    activation = "swiglu" if random.random() < 0.3 and tile != "helped" else "none"
    out_features = (
        8 * random.randint(1, 240) if activation == "none" else 128 * random.randint(1, 15)
    )
    clusters = random.randint(1, random.choice([8, 132]))
    sizes = (32 * random.randint(1, 300), out_features, clusters)
    padding = random.choice([0, max(1, *counts), max(counts) + 5])
    may_take = random.randint(0, 1)
    may_pause = int(tile in PARTS and may_take and random.random() < 0.3)
    if may_pause:  # as may_pause() in tile_choice.h
        least = 2048 if tile == "parts" else 4096
        sizes = (least + sizes[0], round_up(out_features, 64), sizes[2])
    return Case(tile, activation, *sizes, tall_experts, may_take, may_pause, padding, tuple(counts))


@pytest.fixture(scope="session")
def plans(program: str) -> list[Plan]:
    source = random.Random(0)
    cases = [draw_case(source) for _ in range(3200)]
    return list(map(read_plan, cases, ask(program, [case.line for case in cases])))


def test_every_output_of_every_row_is_in_one_tile(plans: list[Plan]) -> None:
    for plan in plans:
        case = plan.case
        seen = [np.zeros((case.sub_blocks, count), np.int16) for count in case.counts]
        for tile in plan.tiles:
            first = tile.row - case.begin_of(tile.expert)
            assert 0 <= first < first + tile.tokens <= case.counts[tile.expert], case.line
            # What reaches past the last sub-block has nothing to do.
            end = tile.sub_block + tile.sub_blocks * plan.blocks
            assert tile.sub_block < case.sub_blocks, case.line
            seen[tile.expert][tile.sub_block : end, first : first + tile.tokens] += tile.k_blocks
        assert all((blocks == case.k_blocks).all() for blocks in seen), case.line


def test_tiles_are_no_larger_than_their_shape(plans: list[Plan]) -> None:
    for plan in plans:
        widths = plan.widths
        assert widths == sorted(set(widths), reverse=True), plan.case.line
        assert widths[0] == plan.tokens, plan.case.line
        for tile in plan.tiles:
            most = plan.tokens // 2 if tile.kind == "half" else plan.tokens
            assert tile.tokens <= most, plan.case.line
            assert tile.tokens <= tile.width <= plan.tokens, plan.case.line
            assert tile.width == min(w for w in widths if w >= tile.tokens), plan.case.line
            height = plan.out // 64
            if "varies height" in plan.traits:  # blocks copy no weights that do not exist
                height = plan.tall if tile.expert < plan.tall_experts else plan.low
                height = min(height, plan.case.sub_blocks - tile.sub_block)
            assert tile.sub_blocks == height, plan.case.line
            assert tile.sub_block % plan.case.height_step == 0, plan.case.line
            assert tile.sub_blocks % plan.case.height_step == 0, plan.case.line


def test_experts_of_few_large_tiles_may_have_all_of_three_quarters(plans: list[Plan]) -> None:
    three_quarters = Counter[tuple[str, int]]()
    for plan in plans:
        for tile in plan.tiles if plan.paused == 0 else ():
            count, each = plan.case.counts[tile.expert], plan.tokens
            tiles = -(-count // each)
            if 1 < tiles <= plan.three_quarter_tiles and count <= tiles * each * 3 // 4:
                each = each * 3 // 4
                three_quarters[plan.case.tile, tiles] += 1
            place = (tile.row - plan.case.begin_of(tile.expert)) % each
            assert place in ((0, plan.tokens // 2) if tile.kind == "half" else (0,)), plan.case.line
            assert tile.tokens <= each - place, plan.case.line
    wide = {(tile, tiles) for tile in ("large", "large_parts") for tiles in (2, 3)}
    wide |= {(tile, 2) for tile in ("grouped", "grouped_rounded", "grouped_parts")}
    assert set(three_quarters) == wide
    assert min(three_quarters.values()) > 10


def test_wide_tiles_of_an_expert_are_equally_high(plans: list[Plan]) -> None:
    """As far as a whole number of steps allows, and no more of them than the highest would be."""
    heights = set()
    for plan in plans:
        most, step = plan.out // 64, plan.case.height_step
        tiles = -(-plan.case.sub_blocks // most)
        evens = "any height" in plan.traits and "wide" in plan.traits and tiles > 1
        fits = [h for h in range(step, most + 1, step) if h * tiles >= plan.case.sub_blocks]
        assert plan.tall == (min(fits) if evens else most), plan.case.line
        heights.add((plan.case.tile, plan.case.activation, plan.tall))
    assert heights >= {("medium", "none", 3), ("medium", "none", 4), ("medium", "swiglu", 4)}


def test_few_tiles_are_as_low_as_still_makes_no_more_than_clusters(plans: list[Plan]) -> None:
    """But for those that are helped."""
    heights = set()
    for plan in plans:
        if plan.helped_token_tiles > 0:
            continue
        heavy_or_light = plan.heavy + plan.light - (plan.heavy - plan.whole) // 2
        tall, least = plan.tall, plan.case.height_step
        steps = range(least, tall + 1, least) if "any height" in plan.traits else (least, 2, 4)
        fits = [height for height in steps if 0 < plan.tiles_of(height) <= plan.case.clusters]
        if "varies height" in plan.traits and tall in fits:
            expected = 0 if min(fits) < tall else plan.case.tall_experts
            assert plan.tall_experts == expected, plan.case.line
            if expected == 0:
                assert plan.low == min(fits), plan.case.line
                assert heavy_or_light == plan.tiles_of(plan.low), plan.case.line
                heights.add((plan.case.tile, plan.case.activation, plan.low))
        else:
            assert plan.tall_experts == plan.case.tall_experts, plan.case.line
    few = ("decode", "small", "medium")
    assert heights >= {(tile, "none", height) for tile in few for height in (1, 2)}
    assert heights >= {(tile, "swiglu", 2) for tile in few}
    assert ("medium", "none", 3) in heights


def test_experts_with_few_tokens_are_light_where_tiles_are_wide(plans: list[Plan]) -> None:
    """Half a tile's; a whole one of 128 where another expert has several."""
    kinds, lone = set(), set()
    for plan in plans:
        for tile in plan.tiles:
            count = plan.case.counts[tile.expert]
            assert (tile.kind == "light") == (count <= plan.light_most), plan.case.line
            lone |= {plan.case.tile} if plan.tokens // 2 < count <= plan.light_most else set()
        kinds |= {(plan.case.tile, tile.kind) for tile in plan.tiles}
    assert lone == {"medium", "promoted", "parts"}
    always = {(tile, "heavy") for tile in TILES}
    wide = {(tile, "light") for tile in ("medium", "promoted", "parts", *LARGE)}
    assert kinds == always | wide | {(tile, "half") for tile in LARGE}


def test_halves_are_the_last_wave_of_heavy_tiles_alone(plans: list[Plan]) -> None:
    for plan in plans:
        halves = plan.heavy - plan.whole
        last = (plan.heavy - halves // 2) % plan.case.clusters
        even = not plan.differ and plan.paused == 0
        splits = "splits" in plan.traits and 2 * last <= plan.case.clusters and even
        assert halves == (2 * last if splits else 0), plan.case.line
        assert plan.whole % plan.case.clusters == 0 or not halves, plan.case.line


def test_an_expert_with_one_token_tile_is_alone(plans: list[Plan]) -> None:
    """Alone: no other tile reads these weights."""
    for plan in plans:
        parts = {tile.whole: tile for tile in plan.tiles}  # two parts are one tile
        readers = Counter((tile.expert, tile.sub_block) for tile in parts.values())
        for tile in plan.tiles:
            assert tile.alone == (readers[tile.expert, tile.sub_block] == 1), plan.case.line


def test_clusters_have_as_many_tiles(plans: list[Plan]) -> None:
    """Of those that are dealt out; halves count half."""
    for plan in plans:
        loads, lengths = [0.0] * plan.case.clusters, [0] * plan.case.clusters
        for tile in plan.dealt:
            loads[tile.cluster] += 0.5 if tile.kind == "half" else 1
            lengths[tile.cluster] += 1
        assert max(loads) - min(loads) <= (0.5 if plan.whole < plan.heavy else 1), plan.case.line
        if len(set(plan.case.counts)) == 1:
            assert max(lengths) - min(lengths) <= 1, plan.case.line


def test_all_but_the_first_wave_is_taken(plans: list[Plan]) -> None:
    """And halves, which are dealt out first; decode tiles of few k blocks are all dealt out."""
    kinds = set()
    for plan in plans:
        clusters, tiles = plan.case.clusters, plan.heavy + plan.light
        is_short = plan.case.tile in ("decode", "helped") and plan.case.in_features <= 3 * 128
        halves = plan.heavy - plan.whole
        whole = tiles - halves
        if plan.paused > 0:
            assert plan.taken_begin == 0, plan.case.line
            continue
        if plan.case.may_take and not is_short and tiles - halves // 2 > clusters:
            assert plan.taken_begin == clusters, plan.case.line
            differ = "differ" if plan.differ else "halves" if halves else "equal"
            kinds |= {(plan.case.tile, tile.kind, differ) for tile in plan.taken}
        else:
            assert plan.taken_begin == whole, plan.case.line
        assert len(plan.taken) == whole - plan.taken_begin, plan.case.line
    wide = ("medium", "promoted", "parts", *LARGE)
    assert kinds == {
        *((tile, "heavy", "equal") for tile in TILES),
        *((tile, kind, "differ") for tile in wide for kind in ("heavy", "light")),
        *((tile, "heavy", "halves") for tile in LARGE),
    }


@pytest.fixture(scope="session", params=["parts", "large_parts"])
def few_tiles(program: str, request: pytest.FixtureRequest) -> list[Plan]:
    """Plans whose tiles may be in two parts: of uneven counts, some large ones of even counts."""
    source = random.Random(3)
    is_medium = request.param == "parts"
    cases = []
    for _ in range(800):
        counts = [source.choice([0, 1, 60, 70, 128, 129, 150, 200, 270, 300, 400, 700])]
        counts *= source.randint(1, 4)
        counts += [source.randint(1, 500) for _ in range(source.randint(1, 5))]
        if not is_medium:
            counts = [2 * count for count in counts]
            if source.random() < 0.3:
                counts = [256] * source.randint(1, 16)
        source.shuffle(counts)
        # 16, 17, 31, 32, 64 and 8192 k blocks; large tiles are in parts from 32 on.
        lengths = [2048, 2080, 3968, 4096, 8192, 1 << 20]
        sizes = (source.choice(lengths[0 if is_medium else 3 :]), source.choice([1536, 3072, 7168]))
        clusters = source.choice([2, 5, 66, 132, 132, 250] if is_medium else [2, 5, 33, 66, 66])
        cases.append(
            Case(request.param, "none", *sizes, clusters, len(counts), 1, 1, 0, tuple(counts))
        )
    return list(map(read_plan, cases, ask(program, [case.line for case in cases])))


def test_tiles_are_in_parts_where_there_are_few_waves(few_tiles: list[Plan]) -> None:
    """Not where two, or any of few k blocks, leave less than an eighth idle.

    Large ones also where all take as long, unless they leave less than a tenth.
    """
    reasons = Counter[tuple[bool, bool, bool, bool]]()  # of tiles that differ
    equal = Counter[tuple[bool, bool]]()
    is_medium = few_tiles[0].tokens == 128
    for plan in few_tiles:
        counts, clusters = plan.case.counts, plan.case.clusters
        tiles = sum(-(-count // plan.tokens) for count in counts)
        tiles *= -(-plan.case.sub_blocks // (plan.tall * plan.blocks))
        waves = -(-tiles // clusters)
        is_short = plan.case.k_blocks < 32
        is_few = clusters < tiles <= (4 if is_short else 8 if is_medium else 24) * clusters
        idle = (waves * clusters - tiles) / (waves * clusters)
        is_full = idle < 1 / 8 and (is_short or waves <= 2)
        widths = {
            width for count in counts if count > plan.light_most for width in plan.widths_of(count)
        }
        differ = plan.light > 0 or len(widths) > 1
        evens = differ or (idle >= 1 / 10 and not is_medium)
        pauses = evens and is_few and not is_full
        assert plan.paused == (min(clusters * 3 // 5, 120) if pauses else 0), plan.case.line
        reasons[is_short, is_few, idle >= 1 / 8, waves <= 2] += differ
        equal[is_few, idle >= 1 / 10] += not differ
    cases = [(False, True, False), (False, True, True)]
    cases += [(True, True, False), (True, True, True), (True, False, True)] if is_medium else []
    assert min(reasons[(*case, False)] for case in cases) > 3
    assert min(reasons[False, True, evens, True] for evens in (False, True)) > 3
    if not is_medium:
        assert min(equal[True, evens] for evens in (False, True)) > 3


@pytest.mark.parametrize(
    ("counts", "short", "long"),
    [
        ((150,) * 32 + (60,), False, True),  # 390 tiles, in three waves that are nearly full
        ((150,) * 33, False, True),  # 396
        ((150,) * 33 + (60,), True, True),  # 402: a fourth one of 6 tiles
        ((150,) * 22, False, False),  # 264: two full ones
        ((150,) * 21 + (60,) * 2, False, False),
        ((150,) * 19 + (60,), False, False),  # 234: 30 idle, an eighth would be 33
        ((150,) * 18 + (60,) * 2, True, True),  # 228: 36 idle
        ((150,) * 22 + (60,), True, True),
        ((150,) * 45, False, True),  # 540: more than four waves
        ((150,) * 88, False, True),  # 1056: eight
        ((150,) * 88 + (60,), False, False),
        ((129,) * 5 + (70, 1), False, False),  # 72: less than one
        ((128,) * 33, False, False),  # 198 equal ones
    ],
)
def test_full_or_many_waves_are_not_in_parts(
    program: str, counts: tuple[int, ...], short: bool, long: bool
) -> None:
    """With 16 and 31 k blocks, and with 32."""
    for in_features, pauses in ((2048, short), (3968, short), (4096, long)):
        case = Case("parts", "none", in_features, 1536, 132, len(counts), 1, 1, 0, counts)
        plan = read_plan(case, ask(program, [case.line])[0])
        assert (plan.paused > 0) == pauses, case.line


def test_counts_of_the_tests_on_a_gpu_are_in_parts(program: str) -> None:
    for counts, out_features, in_features in IN_PARTS:
        case = Case("parts", "none", in_features, out_features, 132, len(counts), 1, 1, 0, counts)
        plan = read_plan(case, ask(program, [case.line])[0])
        assert plan.paused == 79, case.line
        heights = {tile.sub_blocks for tile in plan.tiles if tile.pauses}
        assert heights == ({4} if out_features == 1024 else {1, 4}), case.line


@pytest.mark.parametrize("tile", LARGE_PARTS)
def test_large_tiles_of_the_tests_on_a_gpu_are_in_parts(program: str, tile: str) -> None:
    form, scales = ("int4", "none -1") if tile == "large_parts" else ("mxfp4", "e8m0 32")
    widths = ({64, 128, 160, 192, 224, 256}, {64, 192, 256}, {256})
    for (counts, out_features, in_features), expected in zip(LARGE_IN_PARTS, widths, strict=True):
        sizes = f"{len(counts)} {in_features} {out_features}"
        launch = f"{LARGE_HINT} 0 {sum(counts)} {sizes}"
        case = Case(tile, "none", in_features, out_features, 66, len(counts), 1, 1, 0, counts)
        choice = f"choose {launch} {form} {scales} bfloat16 default none 132"
        chosen, few, text = ask(program, [choice, f"few {tile} {launch} 132", case.line])
        assert chosen.startswith(f"large as {tile},"), case.line
        assert few == "1 1", case.line
        plan = read_plan(case, text)
        assert plan.paused == 39, case.line
        assert {tile.width for tile in plan.tiles if tile.pauses} == expected, case.line
        last = [tile for tile in plan.tiles if tile.k_begin > 0]
        if counts == LARGE_IN_PARTS[0][0]:  # narrow tiles have two k blocks in a stage
            assert {tile.k_begin % 2 for tile in last if tile.width == 64} == {0, 1}, case.line
        else:  # some second blocks have no outputs
            assert any(tile.sub_block + 2 >= case.sub_blocks for tile in last), case.line


@pytest.mark.parametrize(
    ("counts", "pauses"),
    [
        ((256,) * 11, False),  # 66 equal tiles: one wave
        ((256,) * 12, True),  # 72
        ((256,) * 20, False),  # 120: 12 idle of 132, an eighth would be 16.5
        ((256,) * 22, False),  # 132
        ((256,) * 29, True),  # 174: 24 idle of 198, a tenth would be 19.8
        ((256,) * 30, False),  # 180: 18
        ((256,) * 29 + (60,), True),  # 180 that differ
        ((256,) * 20 + (60,), False),  # 126 that do, in two waves
        ((256,) * 263 + (60,), True),  # 1584: 24 waves
        ((256,) * 264 + (60,), False),
    ],
)
def test_full_or_many_waves_of_large_tiles_are_not_in_parts(
    program: str, counts: tuple[int, ...], pauses: bool
) -> None:
    for tile in LARGE_PARTS:
        case = Case(tile, "none", 4096, 1536, 66, len(counts), 1, 1, 0, counts)
        plan = read_plan(case, ask(program, [case.line])[0])
        assert (plan.paused > 0) == pauses, case.line


def test_first_parts_come_first_and_last_parts_last(few_tiles: list[Plan]) -> None:
    for plan in few_tiles:
        places = sorted(plan.tiles, key=lambda tile: tile.place)
        first, last = places[: plan.paused], places[len(places) - plan.paused :]
        assert all(tile.pauses == (i < plan.paused) for i, tile in enumerate(places))
        assert [tile.whole for tile in first] == [tile.whole for tile in last], plan.case.line
        for tile in places[plan.paused : len(places) - plan.paused]:
            assert (tile.k_begin, tile.k_blocks) == (0, plan.case.k_blocks), plan.case.line
        for begin, end in zip(first, last, strict=True):
            assert (begin.k_begin, begin.k_blocks) == (0, end.k_begin), plan.case.line
            assert min(begin.k_blocks, end.k_blocks) >= 1, plan.case.line
            assert end.k_begin + end.k_blocks == plan.case.k_blocks, plan.case.line


def test_last_parts_take_less_and_less_time(few_tiles: list[Plan]) -> None:
    """Seven tenths to a fifth of a tile's time; narrow ones count as three quarters of one."""
    shares, seen = [], set()
    for plan in few_tiles:
        last = sorted(plan.tiles, key=lambda tile: tile.place)[len(plan.tiles) - plan.paused :]
        for i, tile in enumerate(last):
            least = plan.tokens * 3 // 4
            time = tile.k_blocks / plan.case.k_blocks * max(tile.tokens, least) / plan.tokens
            expected = 0.7 - 0.5 * i / plan.paused
            assert expected - 1 / plan.case.k_blocks < time <= expected + 1e-9, plan.case.line
            shares.append(time)
            seen.add(tile.tokens >= least)
    assert 0.65 < max(shares) <= 0.7
    assert 0.15 < min(shares) < 0.25
    assert seen == {False, True}


def test_where_tiles_are_in_parts_the_last_whole_ones_are_light(few_tiles: list[Plan]) -> None:
    """A third of a wave before the last parts: heavy tiles, then light ones."""
    kinds = Counter[tuple[str, ...]]()
    for plan in few_tiles:
        if plan.paused == 0:
            continue
        tiles = plan.heavy + plan.light
        order = [tile.kind for tile in sorted(plan.tiles, key=lambda tile: tile.place)[:tiles]]
        end = order[tiles - plan.case.clusters // 3 :]
        assert end == sorted(end), plan.case.line  # heavy, light
        kinds[tuple(sorted(set(end)))] += 1
        # Before it they are mixed, as evenly as they are; a light tile of 256 tokens follows a
        # whole number of heavy ones.
        mixed = order[: tiles - plan.case.clusters // 3]
        lights = np.cumsum([kind == "light" for kind in mixed])
        places = np.arange(1, len(mixed) + 1)
        if plan.tokens == 128:
            assert (np.abs(lights * tiles - places * plan.light) <= tiles).all(), plan.case.line
        elif plan.light > 0:
            follow = places // (-(-plan.heavy // plan.light) + 1)
            left = places - follow < plan.heavy  # heavy ones
            assert (lights[left] == follow[left]).all(), plan.case.line
    assert kinds["heavy", "light"] > 3


def test_the_last_tiles_of_an_expert_are_narrower_where_some_are_in_parts(
    few_tiles: list[Plan],
) -> None:
    """As many of three quarters as still hold all: 270 are three of 96, not 128, 128 and 14."""
    seen = set()
    for plan in few_tiles:
        if plan.paused == 0 and plan.three_quarter_tiles > 0:
            continue  # few tiles of an expert may be narrower too
        tokens: dict[int, dict[int, int]] = defaultdict(dict)
        for tile in plan.tiles:
            tokens[tile.expert][tile.row] = tile.tokens
        for expert, tiles in tokens.items():
            count, begins = plan.case.counts[expert], sorted(tiles)
            each = plan.tokens
            spare = (each * len(begins) - count) // (each // 4)
            narrow = min(spare, len(begins)) if plan.paused else 0
            widths = [each] * (len(begins) - narrow) + [each * 3 // 4] * narrow
            expected = [
                count - sum(widths[:-1]) if i + 1 == len(widths) else w
                for i, w in enumerate(widths)
            ]
            assert [tiles[row] for row in begins] == expected, plan.case.line
            if len(begins) > 1:
                seen.add((plan.paused > 0, narrow))
    is_medium = few_tiles[0].tokens == 128
    assert seen >= {(True, 0), (True, 1), (True, 2), (True, 3)}
    assert ((False, 0) in seen) == is_medium


def test_few_tiles_if_tokens_are_split_evenly(program: str) -> None:
    """No more than four for a multiprocessor: these may be in parts of 16 k blocks or more.

    Large ones: no more than 16 for a cluster of two, in parts from 32 k blocks on.
    """
    cases = {  # tile, max_tokens, padding, rows, experts, in, out_features, multiprocessors
        "parts -1 0 1024 8 8192 7168 132": "1 1",  # 8 tiles of 28
        "parts -1 0 2304 18 8192 7168 132": "1 1",  # 18: 504 of 528
        "parts -1 0 2432 19 8192 7168 132": "0 1",  # 19: 532
        "parts -1 0 2432 19 8192 7168 133": "1 1",
        "parts -1 4096 32768 8 8192 7168 132": "1 1",  # padded: 128 each, not 4096
        "parts -1 4096 77824 19 8192 7168 132": "0 1",
        "parts 100 4096 77824 19 8192 7168 132": "1 1",  # 1900 tokens: 15 tiles
        "parts -1 0 1024 8 2048 7168 132": "1 1",
        "parts -1 0 1024 8 2016 7168 132": "1 0",
        "parts -1 0 1024 8 8192 7160 132": "1 0",  # no whole sub-blocks
        "parts -1 0 1024 8 1048576 64 132": "1 1",
        "parts -1 0 1024 8 1048608 64 132": "1 0",
        "large_parts -1 0 9472 37 4096 7168 132": "1 1",  # 37 tiles of 28: 1036 of 1056
        "large_parts -1 0 9473 37 4096 7168 132": "0 1",  # 38: 1064
        "large_parts -1 0 9473 37 4096 7168 133": "0 1",  # 66 clusters too
        "large_parts -1 0 9473 37 4096 7168 134": "1 1",
        "grouped_parts -1 0 9472 37 4064 7168 132": "1 0",
        "grouped_parts -1 0 9472 37 8192 7224 132": "0 0",
    }
    answers = ask(program, [f"few {case}" for case in cases])
    assert dict(zip(cases, answers, strict=True)) == cases


def test_tiles_of_eight_k_blocks_may_be_helped(program: str) -> None:
    answers = ask(program, [f"helped {in_features}" for in_features in (992, 1024, 8192)])
    assert answers == ["0", "1", "1"]


@pytest.fixture(scope="session")
def helped_tiles(program: str) -> list[Plan]:
    """Plans of few tokens, whose tiles of one sub-block are helped."""
    source = random.Random(4)
    cases = []
    for _ in range(800):
        counts = [source.choice([0, 0, 1, 1, 2, 16, 17, 40]) for _ in range(source.randint(1, 99))]
        counts += source.choice([[], [], [800], [800, 1, 2], [3000, 0, 5]])
        # 8, 31, 32 and 64 k blocks.
        in_features = source.choice([1024, 3968, 4000, 8192])
        out_features = source.choice([64, 384, 1088, 3072, 5760])
        sizes = (in_features, out_features, source.choice([5, 66, 132, 132]))
        cases.append(Case("helped", "none", *sizes, len(counts), 1, 0, 0, tuple(counts)))
    return list(map(read_plan, cases, ask(program, [case.line for case in cases])))


def test_the_last_experts_have_helped_tiles(helped_tiles: list[Plan]) -> None:
    """As few of these as have enough token tiles together; the others have tall ones.

    So has the first of these, if it has as many again as are enough, and more.
    """
    kinds = Counter[tuple[bool, bool, bool]]()
    too_many = set()
    for plan in helped_tiles:
        wanted, tiles = plan.helped_token_tiles, plan.tiles_of(4)
        kinds[plan.case.k_blocks >= 32, tiles > plan.case.clusters, wanted > 0] += tiles > 0
        if wanted == 0:
            continue
        tall = list(plan.case.counts)  # of the experts that have tall tiles
        while tall and sum(-(-count // 16) for count in tall) > plan.token_tiles - wanted:
            tall.pop()
        first = len(tall) if plan.token_tiles > wanted else 0
        spare = plan.token_tiles - wanted - sum(-(-count // 16) for count in tall)
        too_many.add(spare > plan.enough_helped)
        assert plan.tall_experts == first + (spare > plan.enough_helped), plan.case.line
        assert plan.low == 1, plan.case.line
        last = [tile for tile in plan.tiles if tile.expert >= plan.tall_experts]
        places = sorted(tile.place for tile in last)
        assert places == list(range(plan.heavy - len(last), plan.heavy)), plan.case.line
    assert too_many == {False, True}
    assert kinds.keys() == {
        *((is_long, True, helps) for is_long in (False, True) for helps in (False, True)),
        *((False, False, False), (True, False, False), (True, False, True)),
    }
    assert min(kinds.values()) > 10


@pytest.mark.parametrize(
    ("experts", "short", "long"),
    [
        (9, False, False),  # 45 tall tiles of 132, which are made lower as in other kernels
        (10, False, True),  # 50: more than three eighths
        (22, False, True),  # 110: five sixths
        (23, False, False),
        (26, False, False),  # 130
        (27, True, True),  # 135
        (39, True, True),  # 195: 63 in the last wave
        (40, False, True),  # 200: 68
        (52, False, True),  # 260
        (53, True, True),  # 265: 1 in the third wave
        (66, True, True),  # 330: 66
        (67, False, False),
        (132, False, False),  # 660: five full waves
    ],
)
def test_tiles_are_helped_where_they_even_out(
    program: str, experts: int, short: bool, long: bool
) -> None:
    """With 8 and 31 k blocks, and with 32."""
    for in_features, helps in ((1024, short), (3968, short), (4096, long)):
        sizes = (in_features, 1088, 132, experts)
        case = Case("helped", "none", *sizes, 1, 0, 0, (1,) * experts)
        plan = read_plan(case, ask(program, [case.line])[0])
        assert (plan.tall_experts < experts and plan.low == 1) == helps, case.line
        if helps:  # 47 token tiles of 17 sub-blocks: a wave and a half of tall tiles
            assert plan.tall_experts == max(experts - 47, 0), case.line


def test_counts_of_the_tests_on_a_gpu_are_helped(program: str) -> None:
    heights = []
    for counts, out_features, in_features in HELPED:
        case = Case("helped", "none", in_features, out_features, 132, len(counts), 1, 0, 0, counts)
        plan = read_plan(case, ask(program, [case.line])[0])
        heights.append(Counter(tile.sub_blocks for tile in plan.tiles))
        assert plan.tall_experts < len(counts), case.line
    # Of 17 sub-blocks, so that the last of five tall tiles is one high too.
    assert heights == [{4: 4 * 40, 1: 40 + 17 * 47}, {1: 17 * 12}]


def test_exactly_three_eighths_of_a_wave_is_helped(program: str) -> None:
    for experts, low in ((3, 1), (2, 1)):  # 6 tall tiles of 16; 4 are made lower as ever
        case = Case("helped", "none", 4096, 512, 16, experts, 1, 0, 0, (1,) * experts)
        assert read_plan(case, ask(program, [case.line])[0]).low == low, case.line


# What tests of the GPU take to be helped: few tiles of few k blocks, as low as makes one wave.
@pytest.mark.parametrize(
    ("in_features", "out_features", "counts", "heights"),
    [
        (1024, 320, (10, 15), {1}),
        (2944, 248, (1, 0, 3, 4), {1}),
        (1152, 320, (1, 1, 1, 75) + (1,) * 22, {1, 2}),
        (1024, 136, (1,) * 8, {1}),
        (1024, 136, (1,) * 8 + (0,) * 56, {1}),
    ],
)
def test_few_tiles_are_helped(
    program: str, in_features: int, out_features: int, counts: tuple[int, ...], heights: set[int]
) -> None:
    case = Case("helped", "none", in_features, out_features, 132, len(counts), 1, 0, 0, counts)
    plan = read_plan(case, ask(program, [case.line])[0])
    assert {tile.sub_blocks for tile in plan.tiles} == heights, case.line


@pytest.mark.parametrize("tile", TILES)
def test_tiles_can_be_taken_where_there_are_more_than_blocks(program: str, tile: str) -> None:
    """And blocks are no more than tiles, if these are as low as they may be."""
    source = random.Random(6)
    drawn: list[tuple[tuple[int, int], tuple[int, ...]]] = []
    for _ in range(200):
        ranges = source.choice([[(0, 0), (1, 3)], [(0, 2), (1, 300)], [(60, 900)]])
        counts = [source.randint(*source.choice(ranges)) for _ in range(source.randint(1, 40))]
        counts[0] += sum(counts) == 0
        sizes = 32 * source.randint(1, 200), 8 * source.randint(1, 300)
        drawn.append((sizes, tuple(counts)))
    launches = [
        f"launch {tile} {inside} {out} {len(each)} {sum(each)} 132" for (inside, out), each in drawn
    ]
    cases = []
    for (sizes, each), text in zip(drawn, ask(program, launches), strict=True):
        clusters, may_take = map(int, text.split())
        cases.append(Case(tile, "none", *sizes, clusters, len(each), may_take, 0, 0, each))
    seen = set()
    for plan in map(read_plan, cases, ask(program, [case.line for case in cases])):
        clusters, may_take = plan.case.clusters, plan.case.may_take
        is_short = tile in ("decode", "helped") and plan.case.k_blocks < 4
        tiles = plan.heavy + plan.light - (plan.heavy - plan.whole) // 2
        assert may_take or is_short or tiles <= clusters, plan.case.line
        assert clusters <= 132 // plan.blocks, plan.case.line
        seen.add((may_take, tiles > clusters))
    assert seen >= {(0, False), (1, True)}


@pytest.mark.parametrize("several", [0, 1, 20])
def test_every_one_of_many_tiles_has_a_place(program: str, several: int) -> None:
    source = random.Random(several)
    counts = [source.randint(0, 128) for _ in range(1000)]
    counts += [source.randint(129, 5000) for _ in range(several)]
    source.shuffle(counts)
    case = Case("medium", "none", 2048, 7168, 132, len(counts), 1, 0, 0, tuple(counts))
    plan = read_plan(case, ask(program, [case.line])[0])  # which looks for each
    assert len(plan.tiles) > 20000
    assert min(plan.heavy, plan.light) > 100


def mixed_plans(
    program: str, tile: str, heavy: tuple[int, int], light: tuple[int, int], *, most_several: int
) -> Iterator[tuple[Plan, int]]:
    """Plans of random counts, whose tiles are in the order in which they are multiplied.

    ``heavy`` and ``light``: least and most tokens of an expert; ``most_several``: experts with up
    to 300. With each plan goes how many light tiles lie between heavy ones.
    """
    source = random.Random(2)
    for _ in range(60):
        counts = [source.randint(*heavy)] * source.randint(1, 40)
        counts += [source.randint(*light)] * source.randint(1, 40)
        counts += [source.randint(129, 300)] * source.randint(0, most_several)
        source.shuffle(counts)
        sizes = (2048, source.choice([256, 1024, 7168]), source.choice([1, 7, 66, 132]))
        case = Case(tile, "none", *sizes, len(counts), 1, 0, 0, tuple(counts))
        plan = read_plan(case, ask(program, [case.line])[0])
        if plan.taken_begin <= case.clusters:  # one wave is dealt out
            yield plan, max(plan.light - case.clusters // 2, 0)


def test_a_light_tile_of_256_tokens_follows_a_whole_number_of_heavy_ones(program: str) -> None:
    """Rounded up; half a wave and what is left over come last."""
    seen = set()
    for plan, mixed in mixed_plans(program, "large", (193, 256), (1, 128), most_several=0):
        lights = [place for place, tile in enumerate(plan.tiles) if tile.kind == "light"]
        follows = -(-plan.heavy // mixed) if mixed else plan.heavy + 1
        first = plan.heavy // follows
        places = [(follows + 1) * (i + 1) - 1 for i in range(first)]
        places += range(len(plan.tiles) - plan.light + first, len(plan.tiles))
        assert lights == places, plan.case.line
        seen.add(mixed > 0)
    assert seen == {False, True}


# Experts with several tiles make those with one light.
def test_light_tiles_lie_evenly_between_heavy_ones_but_for_the_last(program: str) -> None:
    """Half a wave stays for the end, behind those that follow the last heavy one."""
    seen = set()
    for plan, mixed in mixed_plans(program, "medium", (65, 128), (1, 64), most_several=3):
        order = [tile.kind for tile in plan.tiles]
        left = order[::-1].index("heavy")
        most = plan.light - mixed
        # The share is rounded down, which may leave one more.
        assert most <= left <= most + -(-mixed // plan.heavy) + 1, plan.case.line
        # Of any first tiles, as many are light as of all that are mixed, or one more or less.
        lights = np.cumsum([kind == "light" for kind in order[: len(order) - left]])
        tiles, all_mixed = np.arange(1, len(lights) + 1), plan.heavy + mixed
        assert (np.abs(lights * all_mixed - tiles * mixed) <= all_mixed).all(), plan.case.line
        seen.add((mixed > 0, plan.light_most))
    assert seen == {(is_mixed, most) for is_mixed in (False, True) for most in (64, 128)}


def sub_block_begin(case: Case, expert: int, sub_block: int, k_block: int) -> int:
    """Where a sub-block of 4 KB, or 2 KB, lies in the packed weights (docs/formats.md)."""
    band = sub_block // 4
    in_band = min(4, case.sub_blocks - 4 * band)
    before = (expert * case.sub_blocks + 4 * band) * case.halves + 2 * k_block * in_band
    return 2048 * (before + sub_block % 4 * case.halves_of(k_block))


@pytest.mark.parametrize("tile", TILES)
def test_the_weights_of_the_first_tiles_are_asked_for(program: str, tile: str) -> None:
    """Four k blocks of what the first wave reads, where all experts have as many tokens."""
    source = random.Random(5)
    for _ in range(60):
        experts, tokens = source.randint(1, 40), source.choice([1, 15, 60, 128, 200, 300])
        sizes = 32 * source.randint(1, 200), 8 * source.randint(1, 300), source.choice([3, 40, 132])
        case = Case(tile, "none", *sizes, experts, 1, 0, 0, (tokens,) * experts)
        first = f"first {tile} {case.in_features} {case.out_features} {experts}"
        plan, text, too_few = ask(
            program,
            [case.line, *(f"{first} {n} {case.clusters}" for n in (experts * tokens, experts - 1))],
        )
        pieces = [tuple(map(int, line.split())) for line in text.splitlines()]
        asked = np.zeros(experts * case.sub_blocks * case.halves, np.int8)  # for each 2 KB
        for begin, size in pieces:
            assert begin % 2048 == size % 2048 == 0, case.line
            assert 0 <= begin <= begin + size <= 2048 * len(asked), case.line
            assert size <= 64 << 10, case.line
            asked[begin // 2048 : (begin + size) // 2048] += 1
        assert asked.max() <= 1, case.line
        assert {line.split()[1] for line in too_few.splitlines()} == {"0"}, case.line
        if tile not in ("decode", "small", "medium", "parts", "helped"):
            assert not asked.any(), case.line
            continue
        for read in read_plan(case, plan).tiles:
            if read.place >= case.clusters or read.k_begin > 0:
                continue
            for k_block in range(min(4, case.k_blocks)):
                begin = sub_block_begin(case, read.expert, read.sub_block, k_block) // 2048
                assert asked[begin : begin + case.halves_of(k_block)].all(), case.line


def test_halves_come_first(plans: list[Plan]) -> None:
    for plan in plans:
        for _, tiles in groupby(plan.dealt, lambda tile: tile.cluster):
            halves = [tile.kind == "half" for tile in tiles]
            assert halves == sorted(halves, reverse=True), plan.case.line


def test_token_tiles_are_multiplied_in_groups_that_stay_in_cache(plans: list[Plan]) -> None:
    """By all outputs before the next group."""
    for plan in plans:
        tile_bytes = plan.tokens * plan.case.in_features
        assert plan.token_group == max(1, GROUP_BYTES // tile_bytes), plan.case.line
        places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        rows: dict[int, set[int]] = defaultdict(set)
        for tile in plan.tiles:
            rows[tile.expert].add(tile.row - plan.case.begin_of(tile.expert))
        for tile in sorted(plan.tiles, key=lambda tile: tile.place):
            if tile.k_begin > 0:
                continue  # the first part is where the tile belongs
            # Tiles of an expert need not be equally wide where some are in parts.
            row = tile.row - plan.case.begin_of(tile.expert)
            before = sum(begin < row for begin in rows[tile.expert])
            token_tile = before if plan.paused > 0 else row // plan.tokens
            places[tile.expert].append((token_tile // plan.token_group, tile.sub_block, row))
        assert all(part == sorted(part) for part in places.values()), plan.case.line
