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

// Shared memory of one block, and the ring of stages that producers fill and consumers empty.
#pragma once

#include "grouped_gemm/dequant.cuh"
#include "grouped_gemm/tile_plan.h"
#include "ptx/barrier.cuh"

namespace w4afp8 {

// The tiles of a block, in turn: the first ones are listed from the start, each later one takes the place of the
// tile so many before. That is more than there are stages, so no consumer looks at it any more.
constexpr int kListedTiles = 32;
constexpr uint32_t kListBytes = kListedTiles * sizeof(TileCoordinates);

// Where the producers ask another warp to list the next tile, for which their registers do not suffice.
template <class Tile>
struct TileDesk {
  uint64_t asked;     // arrives: both producers
  uint64_t answered;  // arrives: whoever made the plan, then whoever lists tiles

  __device__ __forceinline__ void initialise() {
    ptx::mbarrier_init(&asked, Tile::kProducers);
    ptx::mbarrier_init(&answered, 1);
  }
};

// Tickets on their way from the first block of a cluster to the others.
template <class Tile>
struct TicketMail {
  // Each tile takes a stage or more, and a block fills those of the others too: so it is at most all stages
  // and the end of the list ahead of them.
  static constexpr int kPlaces = 2 * Tile::kStages;
  uint64_t arrived[kPlaces];
  uint32_t ticket[kPlaces];

  __device__ __forceinline__ void initialise() {
    for (int place = 0; place < kPlaces; ++place) ptx::mbarrier_init(&arrived[place], 1);
  }
  // The `number`-th one, to all other blocks.
  __device__ __forceinline__ void send(int number, uint32_t value) {
    const int place = number % kPlaces;
#pragma unroll
    for (int rank = 1; rank < Tile::kCluster; ++rank) {
      ptx::store_cluster(&ticket[place], value, &arrived[place], rank);
    }
  }
  __device__ __forceinline__ uint32_t receive(int number) {
    const int place = number % kPlaces;
    ptx::mbarrier_arrive_expect(&arrived[place], sizeof(uint32_t));
    ptx::mbarrier_wait(&arrived[place], number / kPlaces % 2);
    return *const_cast<volatile uint32_t*>(&ticket[place]);
  }
};

// A tile of one sub-block: each stage has a k block of it for every warpgroup.
template <class Tile, class Format>
__device__ __forceinline__ bool is_helped(const TileCoordinates& tile) {
  return kHelps<Tile, Format> && tile.sub_blocks == 1;
}

template <class Tile, class Format>
struct SharedStorage {
  static constexpr int kTokenBytes = Tile::kTokens * kSubBlockIn;
  static constexpr int kStageTokenBytes =
      kTokenBytes * (kHelps<Tile, Format> ? Tile::kSubBlocks : 1);
  static constexpr int kWeightBytes = Tile::kSubBlocks * kSubBlockBytes;
  static constexpr int kScaleBytes = Tile::kOut * Format::kScaleBytes;
  static constexpr int kHeightStep = Format::kIsGated ? 2 : 1;  // sub-blocks come in so many
  // 64 outputs of a token, and 16 bytes more so that a column of tokens meets all banks; sums are swizzled.
  static constexpr int kStagedRowBytes = 64 * 2 + (Tile::kTurnsSums ? 0 : 16);
  static constexpr int kStagedBytes = Tile::kStagedTokens * kStagedRowBytes;
  // Two where outputs pass in several chunks, so that one barrier a chunk is enough.
  static constexpr int kStagedBuffers =
      !Tile::kTurnsSums && Tile::kTokens > Tile::kStagedTokens ? 2 : 1;

  // A stage of a helped tile has a k block for each warpgroup, in the place of its sub-block.
  static constexpr int kHelpedBlocks = Tile::kSubBlocks;
  // Threads of a warp that fetch: each one of these k blocks, which are small.
  static constexpr int kFetchingLanes = kHelps<Tile, Format> ? kHelpedBlocks : 1;
  // What a warpgroup hands to the first one: the sum of a k block, of each thread, and its scale.
  struct Handed {
    static constexpr bool kIsScaled = Format::kGroupScaling == GroupScaling::kScaled;
    uint4 sum[kHelps<Tile, Format> ? 128 : 1];  // all halves that a thread has of 16 tokens
    float2 scale[kHelps<Tile, Format> && kIsScaled ? 128 : 1];
  };

  // Where a stage has two k blocks, all of the second lies behind the tokens of both.
  static constexpr int kSecondWeight = 2 * Tile::kDeepWidth * kSubBlockIn;
  static constexpr int kSecondScale = Tile::kDeepWidth > 0 ? kSecondWeight + kWeightBytes : 0;
  static_assert(Tile::kDeepWidth == 0 || kSecondScale + kScaleBytes <= kTokenBytes);

  alignas(1024) uint8_t tokens[Tile::kStages][kStageTokenBytes];  // 128-byte swizzle
  TileCoordinates tiles[kListedTiles];
  alignas(128) uint8_t weight[Tile::kStages][kWeightBytes];
  alignas(128) uint8_t scale[Tile::kStages][kScaleBytes > 0 ? kScaleBytes : 16];
  alignas(16) uint8_t staged[Tile::kConsumers][kStagedBuffers][kStagedBytes];
  alignas(8) float token_scale[Tile::kConsumers][Tile::kTokens];
  // Where sums are turned, room for their units behind the scales.
  float out_scale[Tile::kConsumers][kSubBlockOut * (Tile::kTurnsSums ? 2 : 1)];
  alignas(4) uint16_t bias[Tile::kConsumers][kSubBlockOut];  // bits
  // Of two stages each, by turns: so that who hands on need not wait for the first warpgroup, which takes.
  Handed handed[2][2][kHelps<Tile, Format> ? Tile::kConsumers - 1 : 1];
  uint2 e2m1_table[Format::kTableEntries > 0 ? Format::kTableEntries : 1];
  uint64_t full[Tile::kStages];  // arrives: the producers, then the copied bytes. Waits: consumers
  uint64_t
      empty[Tile::kStages];  // arrives: each consumer warp of the cluster. Waits: the producers
  TileDesk<Tile> desk;
  TicketMail<Tile> mail;
  // The scheduler's tables follow.

  // Of k block `place` of a stage: 0, or 1 too where it has two. The tokens also of those of a helped tile.
  __device__ __forceinline__ uint8_t* weight_of(int stage, int place) {
    return place == 0 ? weight[stage] : tokens[stage] + kSecondWeight;
  }
  __device__ __forceinline__ uint8_t* scale_of(int stage, int place) {
    return place == 0 ? scale[stage] : tokens[stage] + kSecondScale;
  }
  __device__ __forceinline__ uint8_t* tokens_of(int stage, int place, int width) {
    return tokens[stage] + place * width * kSubBlockIn;
  }
};

// Position in the ring. The parity is that of the phase to wait for on `full`.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace w4afp8
