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

// Which tiles there are, and which block multiplies which of them in what order: pure arithmetic on
// the token counts, the same on host and device.
//
// Where tiles are wide, experts with more than half a tile of tokens are heavy: the tensor cores bind
// their tiles. The others are light: copying and dequantising their weights binds. And where some experts have
// several tiles of 128 tokens, those that have one are light too: nobody else reads their weights, and memory binds a
// launch of nothing else. Light tiles lie between heavy ones, that some blocks read memory while others multiply:
// those of 128 tokens evenly, of 256 one after a whole number of heavy ones. The last few come at the end and even it
// out. A wave is one for each block (each cluster).
//
// Tiles may differ, and multiprocessors are not equally fast. So only the first wave is dealt out; the other tiles are
// taken, one by one, by blocks that have nothing left (scheduler.cuh). Not so where a tile is over before the next one
// can be found.
//
// Where there are few waves of tiles that differ, or of equal large ones that would leave a tenth of the time idle, some are
// in two parts. The first k blocks of each are multiplied before anything else, and the others at the end, by whichever block
// has nothing left, from where the first block left the sums: in the tile's outputs. So the order of a sum stays what it
// is. Then all parts and tiles are taken, none dealt out: a block that has not begun yet owes nobody a first part. What is
// taken last gets ever shorter: heavy tiles without light ones between them, the light ones that are left, and last parts.
//
// Where all are heavy, the last wave is evened out without splitting a sum: the later experts may
// have tiles a sub-block lower, or the last tiles, if none are in parts, are halved along the tokens. Where there are fewer
// tiles than blocks, all are as low as still makes no more tiles than blocks. But where tiles of one
// sub-block are helped (main_loop.cuh), and tall ones would leave many blocks idle, the later experts
// have helped ones instead: taken last, they even out what the tall ones before them leave.
//
// With a gated activation a tile's sub-blocks are pairs of one that makes gates and one that makes what
// they let through, so heights are even, and a tile that begins at sub-block s has pairs from s / 2 on.
#pragma once

#include "common/divisor.h"
#include "grouped_gemm/config.h"

namespace w4afp8 {

struct alignas(16) TileCoordinates {
  int expert;      // -1 at the end of a list
  int sub_block;   // first of the tile's sub-blocks of 64 outputs; of the cluster's first block
  int row_begin;   // first row of x
  int num_tokens;  // 1 .. Tile::kTokens; 0 or less for a half that has none
  int sub_blocks;  // of a block: 1 .. Tile::kSubBlocks where Tile::kVariesHeight
  bool alone;      // the expert has no other token tile, so its weights are read once
  uint8_t pause;   // 1 + its number where this is a first part, whose sums wait for the other one
  int k_begin;     // k blocks before this part
  int k_blocks;    // of this part
};

// What there is of each expert.
struct ExpertTables {
  int32_t* heavy_end;  // heavy token tiles of the experts up to and including this one
  int32_t* light_end;  // light ones likewise
  int32_t* row_begin;
  int32_t* count;

  // `storage`: words(experts) int32, aligned to 8 bytes.
  static constexpr int64_t words(int64_t experts) { return 4 * experts + 2; }
  W4AFP8_HOST_DEVICE static ExpertTables at(int32_t* storage, int experts) {
    int32_t* const rows = storage + 2 * experts + 2;
    return {storage, storage + experts, rows, rows + experts};
  }
  // Room for experts + 1 int64: the ends lie there later.
  W4AFP8_HOST_DEVICE void* room() const { return heavy_end; }
};

// Heavy tiles, or light ones.
struct TileCount {
  int32_t token_tiles;
  int32_t tall_token_tiles;  // of the experts that have tall tiles, which come first
  int32_t tall;              // tiles that these make
  int32_t all;
};

// A cluster's share of a range of tiles: from `first` on every n-th, where there are n clusters.
struct TileSteps {
  int32_t first;
  int32_t tiles;  // so many
};

template <class Tile>
struct TilePlan {
  int32_t experts;
  Divisor clusters;    // that share the tiles
  int32_t sub_blocks;  // of an expert
  int32_t k_blocks;
  int32_t token_group;    // token tiles that are multiplied by all outputs before the next so many
  int32_t tall_experts;   // the first so many experts have tall tiles
  int32_t tall_height;    // sub-blocks of these
  int32_t low_height;     // and of the tiles of the others, kStep fewer or less
  int32_t tall_work;      // mean_work_of these
  int32_t low_work;       // and of those kStep lower; 0 where no tile is lower
  int32_t enough_helped;  // token tiles whose helped tiles even out the others
  int32_t light_most;     // tokens that a light expert may have
  TileCount heavy, light;
  bool is_uneven;        // heavy tiles are not all as wide as each other
  bool may_take;         // there is a counter to take tiles by
  bool may_pause;        // besides, sums can wait in the outputs
  int32_t whole;         // heavy tiles from this one on are halves, two for a tile
  uint32_t light_share;  // of the tiles, as long as there are heavy ones, in 2^-32
  int32_t mixed_end;     // no light tiles lie between heavy ones from this place on
  int32_t paused;        // so many tiles, the first ones, are in two parts
  int32_t taken_begin;   // tiles from this place on are taken

  // With more waves the last tiles are short beside what a block does; with few k blocks they are anyway. Tiles of 256
  // tokens are longer.
  static constexpr int kPausedWaves = Tile::kSplits ? 24 : 8, kPausedShortWaves = 4;
  static constexpr int kShortBlocks = 32;
  static constexpr int kMostPaused = 120;
  static constexpr int kWorkUnit = 256;
  // Activations that stay in L2 while all outputs are multiplied with them.
  static constexpr int64_t kTokenGroupBytes = 12 << 20;

  W4AFP8_HOST_DEVICE static int token_tiles(int count) {
    return (count + Tile::kTokens - 1) / Tile::kTokens;
  }
  // First token of the `tile`-th of an expert's tiles. Few tiles of three quarters are faster than whole ones and
  // a narrow one. Where some tiles are in parts, as many of an expert's last tiles are of three quarters as hold its
  // tokens so: 270 are three of 96, not 128, 128 and 14.
  W4AFP8_HOST_DEVICE int token_begin(int count, int tiles, int tile) const {
    constexpr int kQuarter = Tile::kTokens / 4;
    if (Tile::kMayPause && paused > 0) {
      const int spare = (tiles * Tile::kTokens - count) / kQuarter;
      const int narrow = tile - (tiles - (spare < tiles ? spare : tiles));
      return tile * Tile::kTokens - (narrow > 0 ? narrow * kQuarter : 0);
    }
    const bool narrow =
        tiles > 1 && tiles <= Tile::kThreeQuarterTiles && count <= tiles * Tile::kThreeQuarters;
    return tile * (narrow ? Tile::kThreeQuarters : Tile::kTokens);
  }
  W4AFP8_HOST_DEVICE bool is_heavy(int count) const { return !Tile::kIsWide || count > light_most; }
  // Whether an expert's only tile is light where others have several. A tile of 256 tokens multiplies longer than its
  // weights take to read.
  static constexpr bool kLoneIsLight = Tile::kIsWide && Tile::kTokens <= 128;
  W4AFP8_HOST_DEVICE void choose_light(bool any_has_several) {
    light_most = kLoneIsLight && any_has_several ? Tile::kTokens : Tile::kTokens / 2;
  }

  // One bit for each width of an expert's tiles, if none are in parts.
  W4AFP8_HOST_DEVICE uint32_t widths_of(int count) const {
    const int tiles = token_tiles(count), last = token_begin(count, tiles, tiles - 1);
    const auto bit = [](int width) { return 1u << (width - 1) / 8; };
    const uint32_t others = tiles > 1 ? bit(token_begin(count, tiles, 1)) : 0;
    return others | bit(width_of<Tile>(count - last).tokens);
  }

  W4AFP8_HOST_DEVICE static int token_group_of(int64_t in_features) {
    if (in_features >= kTokenGroupBytes / Tile::kTokens) return 1;  // 32 bits are enough below
    return static_cast<int>(static_cast<uint32_t>(kTokenGroupBytes / Tile::kTokens) /
                            static_cast<uint32_t>(in_features));
  }

  // What does not depend on the token counts. Heights are multiples of kStep: 1, or 2 with a gated
  // activation. Six sub-blocks are two tiles of three, not one of four and one of two, which take longer: probably as few
  // warpgroups hide little of what the others do between their products.
  template <int kStep>
  W4AFP8_HOST_DEVICE static TilePlan without_counts(const GroupGemmParams& params, int clusters) {
    TilePlan plan = {};
    plan.experts = plan.tall_experts = static_cast<int>(params.tokens.experts);
    plan.clusters = Divisor::of(clusters);
    plan.sub_blocks = static_cast<int>(params.weight_layout().padded_out() / kSubBlockOut);
    plan.k_blocks = static_cast<int>(params.weight_layout().k_blocks());
    plan.token_group = token_group_of(params.in_features);
    plan.tall_height = Tile::kSubBlocks;
    if (Tile::kAnyHeight && Tile::kIsWide && plan.sub_blocks > Tile::kSubBlocks) {
      const int blocks = (plan.sub_blocks + Tile::kSubBlocks - 1) / Tile::kSubBlocks;
      const int even = (plan.sub_blocks + blocks - 1) / blocks;
      plan.tall_height = (even + kStep - 1) / kStep * kStep;
    }
    plan.low_height = plan.tall_height - kStep;
    if (Tile::kAnyHeight) {
      plan.tall_work = plan.mean_work_of(plan.tall_height);
      plan.low_work = plan.mean_work_of(plan.low_height);
    }
    if (Tile::kMayHelp) {  // as many as make a wave and a half of tall tiles
      const int wanted = clusters * Tile::kSubBlocks / 2 * 3;
      plan.enough_helped = (wanted + plan.sub_blocks - 1) / plan.sub_blocks;
    }
    return plan;
  }

  // Whether tiles of so many k blocks may be taken: a decode tile of fewer is over before the next one is found, so that
  // launches of them took 12 to 15% longer (kernel-log.md, run 129).
  W4AFP8_HOST_DEVICE static bool can_take(int64_t k_blocks) {
    return Tile::kTokens >= 64 || k_blocks >= 4;
  }

  W4AFP8_HOST_DEVICE int height_of(bool tall) const {
    if (!Tile::kVariesHeight) return Tile::kSubBlocks;  // known without a look
    return tall ? tall_height : low_height;
  }

  W4AFP8_HOST_DEVICE int out_blocks(bool tall) const { return out_blocks_of(height_of(tall)); }

  // Where all tiles are heavy, and more than clusters, later experts may have low ones.
  W4AFP8_HOST_DEVICE bool may_lower_last() const {
    return Tile::kAnyHeight && light.token_tiles == 0 &&
           heavy.token_tiles * out_blocks(true) > clusters.value;
  }
  // How long an expert's tiles of a height take on average, in 2^-8 sub-blocks: each as long as one more than it has, where
  // the last one may be lower (kernel-log.md, runs 193 to 195 and 198).
  W4AFP8_HOST_DEVICE int32_t mean_work_of(int height) const {
    return static_cast<int32_t>(kWorkUnit +
                                int64_t{sub_blocks} * kWorkUnit / out_blocks_of(height));
  }
  // Of so many waves of such tiles, the last of which is as long as the tallest.
  W4AFP8_HOST_DEVICE static uint32_t work_of(int waves, int height, int32_t mean_work) {
    if (waves == 0) return 0;
    return static_cast<uint32_t>(waves - 1) * mean_work + (height + 1) * kWorkUnit;
  }
  // Of the cluster with the most of it, where the first experts, which have so many token tiles, have tall tiles: waves of
  // tall ones, then waves of low ones.
  W4AFP8_HOST_DEVICE uint32_t most_work(int tall_token_tiles) const {
    const int tall = tall_token_tiles * out_blocks(true);
    const int low = (heavy.token_tiles - tall_token_tiles) * out_blocks(false);
    const int tall_waves = clusters.quotient_rounded_up(tall);
    const int low_waves = clusters.quotient_rounded_up(tall + low) - tall_waves;
    return work_of(tall_waves, tall_height, tall_work) + work_of(low_waves, low_height, low_work);
  }

  // Makes tiles lower that would not be done at the same time.
  template <int kStep>
  W4AFP8_HOST_DEVICE void lower(const ExpertTables& tables) {
    const int helped = Tile::kMayHelp ? helped_token_tiles() : 0;
    if (helped == 0) return lower_all<kStep>();
    low_height = 1;
    tall_experts = 0;
    const int others = heavy.token_tiles - helped;
    if (others == 0) return;
    // The expert that both the others and the helped ones reach into is helped, unless it has far too many.
    const int shared = first_above(tables.heavy_end, others, 0, 1);
    const int before = shared > 0 ? tables.heavy_end[shared - 1] : 0;
    tall_experts = others - before > enough_helped ? shared + 1 : shared;
  }

  // So many token tiles, the last ones, should have helped tiles. None where tall tiles fill more than
  // half of the last wave, as helped ones take longer for as many weights. But of many k blocks equal
  // tiles are not equally fast, so that two waves, and most of one, are evened out too.
  W4AFP8_HOST_DEVICE int helped_token_tiles() const {
    const int tiles = heavy.token_tiles * out_blocks(true), wave = clusters.value;
    const bool is_long = k_blocks >= kShortBlocks;
    if (tiles <= wave) {
      if (!is_long || 8 * tiles < 3 * wave || 6 * tiles > 5 * wave) return 0;
    } else if (!is_long || tiles > 2 * wave) {
      const int last = clusters.remainder(tiles);
      if (last == 0 || 2 * last > wave) return 0;
    }
    return heavy.token_tiles < enough_helped ? heavy.token_tiles : enough_helped;
  }

  // Makes all tiles lower where there are few.
  template <int kStep>
  W4AFP8_HOST_DEVICE void lower_all() {
    const int token_tiles = heavy.token_tiles + light.token_tiles;
    const int tiles = token_tiles * out_blocks(true);
    if (!Tile::kVariesHeight || tiles == 0 || tiles > clusters.value) return;
    int height = tall_height;
    while (height > kStep) {
      const int lower = Tile::kAnyHeight ? height - kStep : height / 2;
      if (token_tiles * out_blocks_of(lower) > clusters.value) break;
      height = lower;
    }
    low_height = height;
    if (height < tall_height) tall_experts = 0;
  }

  // Once heights are settled: counts the tiles, decides which are taken and which in parts, and halves those of the last
  // wave if they are few enough.
  W4AFP8_HOST_DEVICE void finish(const ExpertTables& tables) {
    count_tiles(heavy, tables.heavy_end);
    if (Tile::kIsWide) count_tiles(light, tables.light_end);
    whole = heavy.all;
    paused = 0;
    taken_begin = all();
    const bool differ = is_uneven || light.all > 0;
    if (may_take && can_take(k_blocks) && all() > clusters.value) {
      taken_begin = clusters.value;
      if (Tile::kMayPause && may_pause && (differ || Tile::kSplits)) pause(differ);
    }
    mix();
    if (!Tile::kSplits || differ || paused > 0) return;
    const int last = clusters.remainder(heavy.all);
    if (2 * last > clusters.value) return;
    whole -= last;
    heavy.all += last;
    if (taken_begin > whole) taken_begin = whole;
  }

  W4AFP8_HOST_DEVICE int all() const { return heavy.all + light.all; }
  // In the order in which tiles are multiplied: first parts, whole tiles, last parts.
  W4AFP8_HOST_DEVICE int places() const { return all() + (Tile::kMayPause ? paused : 0); }

  static constexpr int kParts = 2;
  struct Sequence {
    TileSteps parts[kParts];
  };

  // The tiles that are dealt to one cluster, in order: halves come first.
  W4AFP8_HOST_DEVICE Sequence sequence(int cluster) const {
    if (Tile::kSplits && whole < heavy.all) {
      return {{steps(whole, heavy.all, cluster), steps(0, taken_begin, cluster)}};
    }
    return {{steps(0, taken_begin, cluster), steps(0, 0, cluster)}};
  }

  W4AFP8_HOST_DEVICE static int length(const Sequence& sequence) {
    return sequence.parts[0].tiles + sequence.parts[1].tiles;
  }

  // The place of the i-th tile of a cluster's sequence, or -1 beyond the last.
  W4AFP8_HOST_DEVICE int place_of(const Sequence& sequence, int i) const {
    const auto& [first, second] = sequence.parts;
    if (i < first.tiles) return first.first + i * clusters.value;
    i -= first.tiles;
    return i < second.tiles ? second.first + i * clusters.value : -1;
  }

  // So many tiles are taken. Halves, numbered last, are not: they are dealt out first.
  W4AFP8_HOST_DEVICE int taken() const {
    return (Tile::kSplits && whole < heavy.all ? whole : places()) - taken_begin;
  }
  // The place of the tile that a ticket is for, or -1 beyond the last.
  W4AFP8_HOST_DEVICE int taken_place(int ticket) const {
    return ticket < taken() ? taken_begin + ticket : -1;
  }

  W4AFP8_HOST_DEVICE bool is_last_part(int place) const {
    return Tile::kMayPause && place >= all();
  }

  // The tile, or part of one, at a place.
  W4AFP8_HOST_DEVICE TileCoordinates locate(const ExpertTables& tables, int place) const {
    const bool is_last = is_last_part(place);
    const int first_place = is_last ? place - all() : place;
    TileCoordinates tile = locate_tile(tables, tile_at(first_place));
    if (!Tile::kMayPause || first_place >= paused) return tile;
    const int last_blocks = last_part_blocks(first_place, tile.num_tokens);
    tile.k_blocks -= last_blocks;
    if (is_last) {
      tile.k_begin = tile.k_blocks;
      tile.k_blocks = last_blocks;
    } else {
      tile.pause = first_place + 1;
    }
    return tile;
  }

 private:
  // Heavy tiles are numbered first. Light ones lie evenly between them.
  W4AFP8_HOST_DEVICE int tile_at(int place) const {
    if (!Tile::kIsWide) return place;
    const int lights = lights_before(place);
    if (place - lights >= heavy.all) return place;  // none but light ones are left
    return lights_before(place + 1) > lights ? heavy.all + lights : place - lights;
  }

  // The first tiles are in parts, and all are taken. Not where two waves would leave less than an eighth of the time idle
  // if tiles took equally long, as these end together anyway; nor any that would, where k blocks are few and parts take as
  // long as they save; nor equal ones that leave less than a tenth.
  W4AFP8_HOST_DEVICE void pause(bool differ) {
    const int waves = clusters.quotient_rounded_up(all()), idle = waves * clusters.value - all();
    const bool is_short = k_blocks < kShortBlocks;
    if (waves > (is_short ? kPausedShortWaves : kPausedWaves)) return;
    if ((is_short || waves <= 2) && 8 * idle < waves * clusters.value) return;
    if (!differ && 10 * idle < waves * clusters.value) return;
    const int wanted = clusters.value * 3 / 5;  // more cost what they even out (kernel-log.md)
    paused = wanted < kMostPaused ? wanted : kMostPaused;
    if (paused > 0) taken_begin = 0;
  }
  // k blocks of the last part of the i-th tile in parts: seven tenths of a tile of all tokens, down to a fifth. In the
  // same time a tile of fewer tokens has more, though not in proportion.
  W4AFP8_HOST_DEVICE int last_part_blocks(int i, int num_tokens) const {
    constexpr int kLongest = 7, kShortest = 2;  // tenths
    constexpr int kLeast = Tile::kThreeQuarters;
    static_assert(kLongest * Tile::kTokens < 10 * kLeast, "the first part has k blocks too");
    const uint32_t tokens = num_tokens < kLeast ? kLeast : num_tokens;
    const uint32_t of_widest =
        static_cast<uint32_t>(k_blocks * (kLongest * paused - (kLongest - kShortest) * i));
    return static_cast<int>(of_widest * Tile::kTokens / (10 * paused * tokens));
  }

  W4AFP8_HOST_DEVICE TileCoordinates locate_tile(const ExpertTables& tables, int index) const {
    const bool is_half = Tile::kSplits && index < heavy.all && index >= whole;
    const int second_half = is_half ? (index - whole) % 2 : 0;
    if (is_half) index = whole + (index - whole) / 2;
    const bool is_light = Tile::kIsWide && index >= heavy.all;
    if (is_light) index -= heavy.all;
    const TileCount kind = is_light ? light : heavy;
    const int32_t* ends = is_light ? tables.light_end : tables.heavy_end;
    const bool tall = !Tile::kVariesHeight || index < kind.tall;
    const int height = height_of(tall), blocks = out_blocks(tall);
    int token_tiles_before = 0;  // those of the other height
    if (!tall) index -= kind.tall, token_tiles_before = kind.tall_token_tiles;
    TileCoordinates tile;
    tile.expert = first_above(ends, index, token_tiles_before, blocks);
    const int count = tables.count[tile.expert];
    const int all_tokens = token_tiles(count);
    int block = index - (ends[tile.expert] - token_tiles_before - all_tokens) * blocks;
    int token_tile = 0;
    if (all_tokens > 1) {
      // Groups of token tiles, then output blocks, then the token tiles of the group.
      int in_group = all_tokens;
      if (all_tokens > token_group) {
        const int group = block / (token_group * blocks);
        block -= group * token_group * blocks;
        token_tile = group * token_group;
        in_group = all_tokens - token_tile < token_group ? all_tokens - token_tile : token_group;
      }
      const int local = block;
      block = local / in_group;
      token_tile += local - block * in_group;
    }
    const int most = is_half ? Tile::kTokens / 2 : Tile::kTokens;
    const int begin = token_begin(count, all_tokens, token_tile);

    tile.sub_block = block * height * Tile::kCluster;
    const int left = sub_blocks - tile.sub_block;
    tile.sub_blocks = Tile::kVariesHeight && left < height ? left : height;
    const int first = begin + second_half * most;
    tile.row_begin = tables.row_begin[tile.expert] + first;
    const int next = token_begin(count, all_tokens, token_tile + 1);
    const int end = count < next ? count : next;
    tile.num_tokens = end - first < most ? end - first : most;
    tile.alone = all_tokens == 1 && !is_half;
    tile.pause = 0;
    tile.k_begin = 0;
    tile.k_blocks = k_blocks;
    return tile;
  }

  W4AFP8_HOST_DEVICE int out_blocks_of(int height) const {
    if (!Tile::kVariesHeight)
      return (sub_blocks + Tile::kSubBlocks * Tile::kCluster - 1) /
             (Tile::kSubBlocks * Tile::kCluster);
    // By 1, 2, 3 or 4, each known to the compiler.
    return height == 3 ? (sub_blocks + 2) / 3 : (sub_blocks + height - 1) >> (height / 2);
  }

  // Evenly all light tiles but half a wave; where some are in parts, all, up to a third of a wave before the last parts.
  // A share that is a little too small leaves more for the end; too large a one would name tiles that do not exist. Of
  // tiles of 256 tokens one follows a whole number of heavy ones, rounded up, which leaves more for the end: more even a
  // mix takes up to 5% longer (kernel-log.md, run 86).
  W4AFP8_HOST_DEVICE void mix() {
    light_share = 0;
    mixed_end = all() - (paused > 0 ? clusters.value / 3 : 0);
    const int lights = light.all - (paused > 0 ? 0 : clusters.value / 2);
    if (!Tile::kIsWide || lights <= 0 || heavy.all == 0) return;
    if (!kLoneIsLight) {
      const uint32_t step = (heavy.all + lights - 1) / lights + 1;
      light_share = 0xFFFFFFFFu / step + 1;
    } else {
      constexpr float kWhole = 4294966272.0f;  // 2^32 less what four roundings may add
      light_share = static_cast<uint32_t>(static_cast<float>(lights) /
                                          static_cast<float>(heavy.all + lights) * kWhole);
    }
  }

  // Of the first `place` tiles, while there are heavy ones.
  W4AFP8_HOST_DEVICE int lights_before(int place) const {
    if (Tile::kMayPause && place > mixed_end) place = mixed_end;
    return static_cast<int>(uint64_t{static_cast<uint32_t>(place)} * light_share >> 32);
  }

  W4AFP8_HOST_DEVICE TileSteps steps(int begin, int end, int cluster) const {
    const int waves = clusters.quotient(end - begin), extra = end - begin - waves * clusters.value;
    return {begin + cluster, waves + (cluster < extra)};
  }

  W4AFP8_HOST_DEVICE void count_tiles(TileCount& kind, const int32_t* ends) const {
    kind.tall_token_tiles = tall_experts == 0 ? 0 : ends[tall_experts - 1];
    kind.tall = kind.tall_token_tiles * out_blocks(true);
    kind.all = kind.tall;
    if (Tile::kVariesHeight)
      kind.all += (kind.token_tiles - kind.tall_token_tiles) * out_blocks(false);
  }

  // First expert whose token tiles, from those `before` on, and those of the experts before it make more
  // than `index` tiles.
  W4AFP8_HOST_DEVICE int first_above(const int32_t* ends, int index, int before, int blocks) const {
    int low = 0, high = experts - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if ((ends[middle] - before) * blocks > index) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

}  // namespace w4afp8
