// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// Prints which tile the grouped GEMM chooses, and its plan of tiles, for the cases on stdin, one a line:
//
//   choose <max_tokens> <padding> <rows> <experts> <in> <out> <int4|mxfp4> <scales> <group_size>
//          <bfloat16|float16> <default|half|float32> <none|swiglu> <multiprocessors>
//   few <tile> <max_tokens> <padding> <rows> <experts> <in> <out> <multiprocessors>
//   helped <in>
//   launch <tile> <in> <out> <experts> <rows> <multiprocessors>
//   first <tile> <in> <out> <experts> <rows> <blocks>
//   divide <divisor> <dividend> ...
//   recent <key> ...
//   lower <tile> <in> <out> <clusters> <count of each expert> ...
//   plan <tile> <none|swiglu> <in> <out> <clusters> <tall_experts> <may_take> <may_pause> <padding>
//        <count of each expert> ...
//
// with `scales` none, float32, bfloat16 or e8m0. The kernel plans on the device; the headers are the
// same. Compiled and read by test_tile_plan.py.
#include "grouped_gemm/tile_plan.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "common/recent.h"
#include "grouped_gemm/first_weights.h"
#include "grouped_gemm/tile_bounds.h"
#include "grouped_gemm/tile_choice.h"

namespace {

using namespace w4afp8;

// By TileKind, which is what `choose` answers.
const std::vector<std::string> kKinds = {"decode", "small", "medium", "large", "promoted"};

template <class Tile_>
struct Named {
  using Tile = Tile_;
  const char* name;
};
constexpr std::tuple kTiles = {Named<TileDecode>{"decode"},
                               Named<TileDecodeHelped>{"helped"},
                               Named<TileSmall>{"small"},
                               Named<TileMedium>{"medium"},
                               Named<TileMediumInParts>{"parts"},
                               Named<TileLarge>{"large"},
                               Named<TileLargeGrouped>{"grouped"},
                               Named<TileLargeInParts>{"large_parts"},
                               Named<TileLargeGroupedInParts>{"grouped_parts"},
                               Named<TileLargeRounded>{"rounded"},
                               Named<TileLargeGroupedRounded>{"grouped_rounded"},
                               Named<TilePromoted>{"promoted"}};

const std::vector<std::string> kFormats = {"int4", "mxfp4"};
const std::vector<std::string> kScales = {"none", "float32", "bfloat16", "e8m0"};
const std::vector<std::string> kOutTypes = {"bfloat16", "float16"};
const std::vector<std::string> kAccumulations = {"default", "half", "float32"};
const std::vector<std::string> kActivations = {"none", "swiglu"};

[[noreturn]] void refuse(const std::string& name) {
  std::fprintf(stderr, "%s: no such word\n", name.c_str());
  std::exit(1);
}

template <class Enum>
Enum find(const std::vector<std::string>& names, const std::string& name) {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) refuse(name);
  return static_cast<Enum>(found - names.begin());
}

// Calls `function` with the tile of this name.
template <class Function>
void with_named_tile(const std::string& name, const Function& function) {
  const auto called = [&](auto named) {
    if (name != named.name) return false;
    function(typename decltype(named)::Tile{});
    return true;
  };
  if (!std::apply([&](auto... named) { return (called(named) || ...); }, kTiles)) refuse(name);
}

template <class Tile>
void print_shape(Tile) {
  std::printf("%s, %d x %d, widths", std::get<Named<Tile>>(kTiles).name, Tile::kOut, Tile::kTokens);
  for (int i = 0; i < Tile::Widths::kCount; ++i) std::printf(" %d", Tile::Widths::at(i));
  std::printf(", cluster of %d%s%s%s%s%s%s", Tile::kCluster, Tile::kIsWide ? ", wide" : "",
              Tile::kVariesHeight ? ", varies height" : "", Tile::kAnyHeight ? ", any height" : "",
              Tile::kSplits ? ", splits" : "", Tile::kMayPause ? ", may pause" : "",
              Tile::kMayHelp ? ", may help" : "");
  std::printf(", %d of three quarters\n", Tile::kThreeQuarterTiles);
}

template <class Tile>
void print_tile(const TilePlan<Tile>& plan, const ExpertTables& tables, int cluster, int place) {
  const TileCoordinates tile = plan.locate(tables, place);
  const char* kind = !plan.is_heavy(tables.count[tile.expert])            ? "light"
                     : place >= plan.whole && plan.whole < plan.heavy.all ? "half"
                                                                          : "heavy";
  std::printf("cluster %d, place %d: %s, expert %d, sub-blocks %d + %d, rows %d + %d, ", cluster,
              place, kind, tile.expert, tile.sub_block, tile.sub_blocks, tile.row_begin,
              tile.num_tokens);
  std::printf("k blocks %d + %d, ", tile.k_begin, tile.k_blocks);
  std::printf("width %d%s%s\n", width_of<Tile>(tile.num_tokens).tokens, tile.alone ? ", alone" : "",
              tile.pause > 0 ? ", pauses" : "");
}

// As TileScheduler fills them, one expert after the other.
template <class Tile>
void fill_tables(const TokenLayout& tokens, TilePlan<Tile>& plan, const ExpertTables& tables) {
  bool any_has_several = false;
  for (int expert = 0; expert < plan.experts; ++expert) {
    any_has_several |= plan.token_tiles(tokens.short_rows_of(expert).count) > 1;
  }
  plan.choose_light(any_has_several);
  uint32_t widths = 0;
  for (int expert = 0; expert < plan.experts; ++expert) {
    const auto [begin, count] = tokens.short_rows_of(expert);
    (plan.is_heavy(count) ? plan.heavy : plan.light).token_tiles += plan.token_tiles(count);
    tables.heavy_end[expert] = plan.heavy.token_tiles;
    tables.light_end[expert] = plan.light.token_tiles;
    tables.row_begin[expert] = begin;
    tables.count[expert] = count;
    if (Tile::kIsWide && plan.is_heavy(count)) widths |= plan.widths_of(count);
  }
  plan.is_uneven = (widths & (widths - 1)) != 0;
}

template <class Tile, int kStep>
void print_plan(const GroupGemmParams& params, int clusters, int tall_experts, bool may_take,
                bool may_pause) {
  auto plan = TilePlan<Tile>::template without_counts<kStep>(params, clusters);
  std::vector<int32_t> storage(ExpertTables::words(plan.experts));
  const ExpertTables tables = ExpertTables::at(storage.data(), plan.experts);
  fill_tables(params.tokens, plan, tables);
  plan.tall_experts = tall_experts;
  plan.may_take = may_take;
  plan.may_pause = may_pause;
  plan.template lower<kStep>(tables);
  plan.finish(tables);
  std::printf("%d heavy, %d light, %d paused, halves from %d, taken from %d, token groups of %d, ",
              plan.heavy.all, plan.light.all, plan.paused, plan.whole, plan.taken_begin,
              plan.token_group);
  std::printf("%d high up to expert %d, then %d\n", plan.tall_height, plan.tall_experts,
              plan.low_height);
  for (int cluster = 0; cluster < clusters; ++cluster) {
    const auto sequence = plan.sequence(cluster);
    for (int i = 0, place; (place = plan.place_of(sequence, i)) >= 0; ++i) {
      print_tile(plan, tables, cluster, place);
    }
  }
  for (int ticket = 0, place; (place = plan.taken_place(ticket)) >= 0; ++ticket) {
    print_tile(plan, tables, -1, place);
  }
}

// Of each key its value, and whether it was made for it; none of a negative key.
void recent(std::istream& words) {
  Recent<int, int, 4> recent;
  const char* separator = "";
  for (int key; words >> key; separator = ", ") {
    bool made = false;
    const int* const value = recent.find(key, [&](int key, int& value) {
      value = 10 * key;
      return made = key >= 0;
    });
    std::printf(value == nullptr ? "%snone" : "%s%d", separator, value == nullptr ? 0 : *value);
    if (made) std::printf(" made");
  }
  std::puts("");
}

void divide(std::istream& words) {
  int32_t value, dividend;
  words >> value;
  const Divisor divisor = Divisor::of(value);
  while (words >> dividend)
    std::printf("%d %d ", divisor.quotient(dividend), divisor.remainder(dividend));
  std::puts("");
}

// Whether later experts may have low tiles, and how long the most work takes for each number that have not.
void lower(std::istream& words) {
  GroupGemmParams params = {};
  std::string name;
  int step = 0, clusters = 0;
  words >> name >> step >> params.in_features >> params.out_features >> clusters;
  std::vector<int32_t> ends;  // token tiles up to each expert
  const std::vector<int32_t> counts{std::istream_iterator<int32_t>(words), {}};
  params.tokens.experts = static_cast<int64_t>(counts.size());
  with_named_tile(name, [&](auto tile) {
    using Plan = TilePlan<decltype(tile)>;
    Plan plan = step == 1 ? Plan::template without_counts<1>(params, clusters)
                          : Plan::template without_counts<2>(params, clusters);
    ends.push_back(0);
    const auto has_several = [&](int32_t count) { return plan.token_tiles(count) > 1; };
    plan.choose_light(std::any_of(counts.begin(), counts.end(), has_several));
    for (const int32_t count : counts) {
      (plan.is_heavy(count) ? plan.heavy : plan.light).token_tiles += plan.token_tiles(count);
      ends.push_back(plan.heavy.token_tiles);
    }
    std::printf("%d", plan.may_lower_last());
    for (const int32_t end : ends) std::printf(" %u", plan.most_work(end));
    std::puts("");
  });
}

// What shapes are chosen by, of a format (dequant.cuh).
template <Summation summation, GroupScaling scaling, bool is_gated>
struct Format {
  static constexpr Summation kSummation = summation;
  static constexpr GroupScaling kGroupScaling = scaling;
  static constexpr bool kIsGated = is_gated;
};

// Calls `function` with the format of a launch.
template <GroupScaling kScaling, class Function>
void with_scaling(const GroupGemmParams& params, const Function& function) {
  const auto with_gates = [&](auto gates) {
    constexpr bool kIsGated = decltype(gates)::value;
    switch (summation_of(params)) {
      case Summation::kHalves: return function(Format<Summation::kHalves, kScaling, kIsGated>{});
      case Summation::kPromoted:
        return function(Format<Summation::kPromoted, kScaling, kIsGated>{});
      case Summation::kCarried: return function(Format<Summation::kCarried, kScaling, kIsGated>{});
    }
  };
  if (is_gated(params.activation)) return with_gates(std::true_type{});
  with_gates(std::false_type{});
}
template <class Function>
void with_format(const GroupGemmParams& params, const Function& function) {
  switch (scaling_of(params)) {
    case GroupScaling::kNone: return with_scaling<GroupScaling::kNone>(params, function);
    case GroupScaling::kFolded: return with_scaling<GroupScaling::kFolded>(params, function);
    case GroupScaling::kScaled: return with_scaling<GroupScaling::kScaled>(params, function);
  }
}

void choose(std::istream& words) {
  GroupGemmParams params = {};
  std::string format, scales, out_type, accumulation, activation;
  int multiprocessors = 0;
  words >> params.max_tokens >> params.tokens.padding >> params.tokens.num_rows;
  words >> params.tokens.experts >> params.in_features >> params.out_features;
  words >> format >> scales >> params.group_size >> out_type >> accumulation;
  words >> activation >> multiprocessors;
  params.weight_format = find<WeightFormat>(kFormats, format);
  params.group_scale_type = find<GroupScaleType>(kScales, scales);
  params.out_type = find<DataType>(kOutTypes, out_type);
  params.accumulation = find<Accumulation>(kAccumulations, accumulation);
  params.activation = find<Activation>(kActivations, activation);
  const TileKind kind = choose_tile(params);
  std::printf("%s as ", kKinds[static_cast<int>(kind)].c_str());
  with_format(params, [&](auto format) {
    with_tile<decltype(format)>(kind, params, multiprocessors,
                                [](auto tile) { print_shape(tile); });
  });
}

// Whether there are few tiles, and whether these may pause.
void few(std::istream& words) {
  GroupGemmParams params = {};
  std::string name;
  int multiprocessors = 0;
  words >> name >> params.max_tokens >> params.tokens.padding >> params.tokens.num_rows;
  words >> params.tokens.experts >> params.in_features >> params.out_features;
  words >> multiprocessors;
  with_named_tile(name, [&](auto tile) {
    using Tile = decltype(tile);
    std::printf("%d %d\n", has_few_tiles<Tile>(params, multiprocessors), may_pause<Tile>(params));
  });
}

// Whether decode tiles may be helped.
void helped(std::istream& words) {
  GroupGemmParams params = {};
  words >> params.in_features;
  std::printf("%d\n", may_help(params));
}

// What is known of a launch before its counts are.
struct Launch {
  std::string tile;
  GroupGemmParams params;
  int blocks;  // one a multiprocessor
};

Launch read_launch(std::istream& words) {
  Launch launch = {};
  GroupGemmParams& params = launch.params;
  words >> launch.tile >> params.in_features >> params.out_features;
  words >> params.tokens.experts >> params.tokens.num_rows >> launch.blocks;
  return launch;
}

// How many clusters a launch has, and whether they may take tiles.
void launch(std::istream& words) {
  const Launch launch = read_launch(words);
  with_named_tile(launch.tile, [&](auto tile) {
    using Tile = decltype(tile);
    std::printf("%d %d\n", clusters_of<Tile>(launch.params, launch.blocks),
                may_take<Tile>(launch.params, launch.blocks));
  });
}

// What each block asks for before it has a plan: where it begins in the weights, and its size.
void first(std::istream& words) {
  const Launch launch = read_launch(words);
  with_named_tile(launch.tile, [&](auto tile) {
    for (int block = 0; block < launch.blocks; ++block) {
      const WeightPiece piece = first_weights<decltype(tile)>(launch.params, block);
      std::printf("%lld %lld\n", static_cast<long long>(piece.begin),
                  static_cast<long long>(piece.size));
    }
  });
}

void plan(std::istream& words) {
  GroupGemmParams params = {};
  std::string name, activation;
  int clusters = 0, tall_experts = 0;
  bool may_take = false, may_pause = false;
  words >> name >> activation;
  params.activation = find<Activation>(kActivations, activation);
  words >> params.in_features >> params.out_features >> clusters >> tall_experts >> may_take;
  words >> may_pause;
  words >> params.tokens.padding;
  const bool is_padded = params.tokens.padding > 0;
  std::vector<int32_t> tokens;  // counts, or their running sums
  int32_t rows = 0;
  for (int32_t count; words >> count;) tokens.push_back(is_padded ? count : rows += count);
  params.tokens.experts = static_cast<int64_t>(tokens.size());
  params.tokens.num_rows = is_padded ? params.tokens.experts * params.tokens.padding : rows;
  params.tokens.tokens = tokens.data();
  with_named_tile(name, [&](auto tile) {
    print_shape(tile);
    if (is_gated(params.activation)) {
      print_plan<decltype(tile), 2>(params, clusters, tall_experts, may_take, may_pause);
    } else {
      print_plan<decltype(tile), 1>(params, clusters, tall_experts, may_take, may_pause);
    }
  });
}

}  // namespace

int main() {
  for (std::string line, verb; std::getline(std::cin, line);) {
    std::istringstream words(line);
    words >> verb;
    if (verb == "divide") divide(words);
    if (verb == "recent") recent(words);
    if (verb == "lower") lower(words);
    if (verb == "choose") choose(words);
    if (verb == "few") few(words);
    if (verb == "helped") helped(words);
    if (verb == "launch") launch(words);
    if (verb == "first") first(words);
    if (verb == "plan") plan(words);
    std::puts("");
  }
}
