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
// their tiles. The others are light: reading their weights binds. Heavy tiles are dealt out in waves of
// one for each block (each cluster); where the last wave is short, those with one fewer take two light
// tiles for it; the other light tiles are dealt out in turn. Every second block starts with its light
// tiles, so that some read memory while others multiply.
//
// The last token tile of an expert may be narrow. Experts with equally many token tiles would make every
// third tile narrow, say, and clusters whose number is a multiple of 3 would have only these or none. So
// each wave starts kTurn clusters later than the one before then, but not where many tiles are light:
// those lose more than is gained.
//
// Where all are heavy, the last wave is evened out without splitting a sum: the later experts may
// have tiles a sub-block lower, or the last tiles are halved along the tokens. Where there are fewer
// tiles than blocks, all are as low as still makes no more tiles than blocks.
//
// With a gated activation a tile's sub-blocks are pairs of one that makes gates and one that makes what
// they let through, so heights are even, and a tile that begins at sub-block s has pairs from s / 2 on.
#pragma once

#include "grouped_gemm/config.h"

namespace w4afp8 {

struct TileCoordinates {
  int expert;
  int sub_block;   // first of the tile's sub-blocks of 64 outputs; of the cluster's first block
  int sub_blocks;  // of a block: 1 .. Tile::kSubBlocks where Tile::kVariesHeight
  int row_begin;   // first row of x
  int num_tokens;  // 1 .. Tile::kTokens; 0 or less for a half that has none
  bool alone;      // the expert has no other token tile: its weights are read once
};

// What there is of each expert.
struct ExpertTables {
  int32_t* heavy_end;  // heavy tiles of the experts up to and including this one
  int32_t* light_end;  // light tiles likewise
  int32_t* row_begin;
  int32_t* count;

  static constexpr int kTables = 4;
  W4AFP8_HOST_DEVICE static ExpertTables at(int32_t* storage, int experts) {
    return {storage, storage + experts, storage + 2 * experts, storage + 3 * experts};
  }
};

// Tiles begin + place, begin + stride + place + turn ... before end, places modulo the stride.
struct TileSteps {
  int32_t begin, place, stride, end, turn;

  W4AFP8_HOST_DEVICE bool has_tile() const { return begin + place < end; }
  W4AFP8_HOST_DEVICE int tile() const { return begin + place; }
  W4AFP8_HOST_DEVICE void advance() {
    begin += stride;
    place += turn;
    if (place >= stride) place -= stride;
  }
};
struct TileSequence {
  static constexpr int kParts = 3;
  TileSteps parts[kParts];
};

template <class Tile>
struct TilePlan {
  int32_t experts;
  int32_t clusters;      // that share the tiles
  int32_t sub_blocks;    // of an expert
  int32_t tall_experts;  // the first so many experts have tall tiles
  int32_t tall_height;   // sub-blocks of these
  int32_t low_height;    // and of the tiles of the others, kStep fewer or less
  int32_t tall_blocks;   // tiles that an expert's outputs are, if tall
  int32_t low_blocks;    // and if low
  int32_t heavy, light;  // tiles
  bool has_narrow;       // a heavy expert ends with a tile narrower than its others
  int32_t whole;         // heavy tiles from this one on are halves, two for a tile
  int32_t token_group;   // token tiles that are multiplied by all outputs before the next so many

  // With 132 and 66 clusters it makes primes, 137 and 71, that share no factor with token tiles.
  static constexpr int kTurn = 5;
  // Activations that stay in L2 while all outputs are multiplied with them.
  static constexpr int64_t kTokenGroupBytes = 12 << 20;

  W4AFP8_HOST_DEVICE static int token_tiles(int count) {
    return (count + Tile::kTokens - 1) / Tile::kTokens;
  }
  // Tokens of each of an expert's tiles but the last. Two or three tiles of three quarters are faster
  // than one or two whole ones and a narrow one.
  W4AFP8_HOST_DEVICE static int tile_tokens(int count, int tiles) {
    if (!Tile::kHasThreeQuarters || tiles < 2 || tiles > 3) return Tile::kTokens;
    return count <= tiles * Tile::kThreeQuarters ? Tile::kThreeQuarters : Tile::kTokens;
  }
  W4AFP8_HOST_DEVICE static bool is_heavy(int count) {
    return !Tile::kIsWide || 2 * count > Tile::kTokens;
  }

  W4AFP8_HOST_DEVICE static bool ends_narrow(int count) {
    const int last = count % Tile::kTokens;
    return Tile::kIsWide && count > Tile::kTokens && last > 0 &&
           tile_width<Tile>(last) < Tile::kTokens;
  }

  // Once heights are settled. Halves the last wave's tiles if they are few enough.
  W4AFP8_HOST_DEVICE void finish() {
    tall_blocks = out_blocks(true);
    low_blocks = Tile::kVariesHeight ? out_blocks(false) : tall_blocks;
    whole = heavy;
    const int last = heavy % clusters;
    if (!Tile::kSplits || light > 0 || 2 * last > clusters) return;
    whole -= last;
    heavy += last;
  }

  W4AFP8_HOST_DEVICE static int token_group_of(int64_t in_features) {
    if (in_features >= kTokenGroupBytes / Tile::kTokens) return 1;  // 32 bits are enough below
    return static_cast<int>(static_cast<uint32_t>(kTokenGroupBytes / Tile::kTokens) /
                            static_cast<uint32_t>(in_features));
  }

  // Before anything is lowered. Heights are multiples of kStep: 1, or 2 with a gated activation. Six
  // sub-blocks are two tiles of three, not one of four and one of two: with few warpgroups at work nothing
  // hides what they do between their products.
  template <int kStep>
  W4AFP8_HOST_DEVICE void set_heights() {
    tall_height = Tile::kSubBlocks;
    if (Tile::kAnyHeight && Tile::kIsWide && sub_blocks > Tile::kSubBlocks) {
      const int blocks = (sub_blocks + Tile::kSubBlocks - 1) / Tile::kSubBlocks;
      const int even = (sub_blocks + blocks - 1) / blocks;
      tall_height = (even + kStep - 1) / kStep * kStep;
    }
    low_height = tall_height - kStep;
  }

  W4AFP8_HOST_DEVICE int height_of(bool tall) const {
    if (!Tile::kVariesHeight) return Tile::kSubBlocks;  // known without a look
    return tall ? tall_height : low_height;
  }

  W4AFP8_HOST_DEVICE int out_blocks(bool tall) const {
    const int height = height_of(tall) * Tile::kCluster;
    return (sub_blocks + height - 1) / height;
  }

  // Makes all tiles lower where there are few: `heavy` and `light` count tall ones. False where none is.
  template <int kStep>
  W4AFP8_HOST_DEVICE bool lower_all() {
    const int tiles = heavy + light;
    if (!Tile::kVariesHeight || tiles == 0 || tiles > clusters) return false;
    const int tall = out_blocks(true), token_tiles = tiles / tall;
    int height = tall_height;
    while (height > kStep) {
      low_height = Tile::kAnyHeight ? height - kStep : height / 2;
      if (token_tiles * out_blocks(false) > clusters) break;
      height = low_height;
    }
    low_height = height;
    if (height == tall_height) return false;
    tall_experts = 0;
    heavy = heavy / tall * out_blocks(false);
    light = light / tall * out_blocks(false);
    return true;
  }

  // The tiles of one cluster, in order.
  W4AFP8_HOST_DEVICE TileSequence sequence(int cluster) const {
    const int turn = has_narrow && 8 * int64_t{light} <= heavy ? kTurn % clusters : 0;
    const TileSteps heavies = {0, cluster, clusters, whole, turn}, none = {0, 0, 1, 0, 0};
    if (whole < heavy) return {{{whole, cluster, clusters, heavy, 0}, heavies, none}};
    // Clusters whose place in the last wave is `extra` or later have a heavy tile fewer than the others,
    // for which they take up to two light ones.
    const int waves = heavy / clusters, extra = heavy - waves * clusters;
    const int place = (cluster + waves % clusters * turn) % clusters;
    const int takers = extra > 0 ? clusters - extra : 0;
    const int firsts = light < 2 * takers ? light : 2 * takers;
    TileSteps lights = none;
    if (takers > 0 && place >= extra) lights = {heavy, place - extra, takers, heavy + firsts, 0};
    const TileSteps others = {heavy + firsts, place, clusters, heavy + light, 0};
    if (cluster % 2 == 0) return {{heavies, lights, others}};
    return {{lights, others, heavies}};
  }

  W4AFP8_HOST_DEVICE TileCoordinates locate(const ExpertTables& tables, int index) const {
    const bool is_half = index < heavy && index >= whole;
    const int second_half = is_half ? (index - whole) % 2 : 0;
    if (is_half) index = whole + (index - whole) / 2;
    const bool is_light = index >= heavy;
    if (is_light) index -= heavy;
    const int32_t* ends = is_light ? tables.light_end : tables.heavy_end;
    TileCoordinates tile;
    tile.expert = first_above(ends, index);
    const int count = tables.count[tile.expert];
    const bool tall = !Tile::kVariesHeight || tile.expert < tall_experts;
    const int blocks = !Tile::kVariesHeight ? out_blocks(true) : tall ? tall_blocks : low_blocks;
    const int all_tokens = token_tiles(count);
    int block = index - (ends[tile.expert] - blocks * all_tokens);
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
    const int each = tile_tokens(count, all_tokens), token_begin = token_tile * each;

    const int height = height_of(tall);
    tile.sub_block = block * height * Tile::kCluster;
    const int left = sub_blocks - tile.sub_block;
    tile.sub_blocks = Tile::kVariesHeight && left < height ? left : height;
    const int first = token_begin + second_half * most;
    tile.row_begin = tables.row_begin[tile.expert] + first;
    const int end = count < token_begin + each ? count : token_begin + each;
    tile.num_tokens = end - first < most ? end - first : most;
    tile.alone = all_tokens == 1 && !is_half;
    return tile;
  }

 private:
  // First expert whose running sum is above `index`.
  W4AFP8_HOST_DEVICE int first_above(const int32_t* ends, int index) const {
    int low = 0, high = experts - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends[middle] > index) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }
};

}  // namespace w4afp8
