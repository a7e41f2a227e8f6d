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

// The grouped GEMM kernel: set up, then the warps of one warpgroup count the tokens and one of them plans; a thread of it
// then finds the tiles that are not listed from the start, and one or two other warps fetch tiles that kConsumers
// warpgroups multiply. docs/kernel.md follows one tile from global memory to the output.
#pragma once

#include <cutlass/arch/reg_reconfig.h>
#include <cutlass/cutlass.h>

#include "common/grid_dependency.cuh"
#include "grouped_gemm/epilogue.cuh"
#include "grouped_gemm/first_weights.h"
#include "grouped_gemm/main_loop.cuh"
#include "grouped_gemm/producer.cuh"
#include "grouped_gemm/turned_epilogue.cuh"
#include "ptx/prefetch.cuh"

namespace w4afp8 {

template <class Tile, class Format>
__device__ __forceinline__ void initialise(SharedStorage<Tile, Format>& shared,
                                           const TokenMaps<Tile>& token_maps) {
  if (threadIdx.x == 0) {
    for (const CUtensorMap& map : token_maps.of_width) ptx::prefetch_tensor_map(&map);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(&shared.full[stage], Tile::kProducers);
      ptx::mbarrier_init(&shared.empty[stage], Tile::kConsumers * 4 * Tile::kCluster);
    }
    shared.desk.initialise();
    if constexpr (Tile::kCluster > 1) shared.mail.initialise();
    ptx::fence_mbarrier_init();
  }
  if constexpr (Format::kTableEntries > 0) {
    for (int entry = threadIdx.x; entry < Format::kTableEntries; entry += Tile::kThreads) {
      shared.e2m1_table[entry] = Format::table(entry);
    }
  }
}

// One tile of this warpgroup, from its first stage to its outputs.
template <class Tile, class Format>
__device__ __forceinline__ void multiply(TileCoordinates tile, MainLoop<Tile, Format>& main_loop,
                                         EpilogueOf<Tile, Format>& epilogue,
                                         LaunchCounters* counters) {
  if (main_loop.skips(tile)) {
    if (kPauses<Tile, Format> && tile.pause > 0) counters->count_paused(tile.pause - 1);
    return;
  }
  const bool helps = main_loop.helps();
  if (!helps) epilogue.prefetch(tile);
  const bool begins = !kPauses<Tile, Format> || tile.k_begin == 0;
  const auto resume = [&](auto& sums) {
    if constexpr (kPauses<Tile, Format>) epilogue.resume(tile, sums);
  };
  main_loop.run(tile.num_tokens, begins, resume, [&](const auto& sums) {
    if (helps) return;
    tile = main_loop.tile();  // no register has to hold it meanwhile
    if constexpr (kPauses<Tile, Format>) {
      if (tile.pause > 0) {
        epilogue.pause(tile, sums);
        counters->count_paused(tile.pause - 1);
        return;
      }
    }
    epilogue.store(tile, sums);
  });
}

template <class Tile, class Format>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    group_gemm_kernel(const __grid_constant__ GroupGemmParams params,
                      const __grid_constant__ TokenMaps<Tile> token_maps,
                      const __grid_constant__ TilePlan<Tile> plan, LaunchCounters* counters) {
  using Storage = SharedStorage<Tile, Format>;
  extern __shared__ __align__(1024) uint8_t shared_bytes[];
  Storage& shared = *reinterpret_cast<Storage*>(shared_bytes);
  const uint32_t rank = blockIdx.x % Tile::kCluster;

  initialise(shared, token_maps);
  // All blocks of the cluster must see these barriers before anything is sent to them.
  if constexpr (Tile::kCluster > 1) {
    __syncwarp();
    ptx::cluster_sync();
  } else {
    __syncthreads();
  }

  // The compiler knows that whole warps go one way here.
  if (cutlass::canonical_warp_group_idx() >= Tile::kConsumers) {
    const uint32_t warp = threadIdx.x / 32 - Tile::kConsumerThreads / 32;
    if (warp == 3) {
      const WeightPiece piece = first_weights<Tile>(params, blockIdx.x);
      if (piece.size > 0 && threadIdx.x % 32 == 0) {
        ptx::bulk_prefetch(params.weight + piece.begin, piece.size);
      }
      __syncwarp();
    }
    if (params.start == Start::kBehind) wait_for_previous_grids();
    TileScheduler<Tile> scheduler(reinterpret_cast<int32_t*>(shared_bytes + sizeof(Storage)),
                                  shared.tiles, shared.desk, shared.mail, counters);
    scheduler.template build<Storage::kHeightStep>(params.tokens, params.start, plan);
    if constexpr (Tile::kMovesRegisters) {
      cutlass::arch::warpgroup_reg_dealloc<Tile::kProducerRegisters>();
    }
    if (threadIdx.x % 32 < (warp == 0 ? 1 : Storage::kFetchingLanes)) {
      constexpr bool kAlone = Tile::kProducers == 1;
      if (warp == 0) {
        scheduler.serve();
      } else if (warp == 1) {
        using First = Producer<Tile, Format, kAlone ? Fetches::kAll : Fetches::kWeights>;
        First(params, token_maps, shared, rank).run(scheduler);
      } else if (!kAlone && warp == 2) {
        Producer<Tile, Format, Fetches::kOthers>(params, token_maps, shared, rank).run(scheduler);
      }
    }
  } else {
    if constexpr (Tile::kMovesRegisters) {
      cutlass::arch::warpgroup_reg_alloc<Tile::kConsumerRegisters>();
    }
    MainLoop<Tile, Format> main_loop(params, shared);
    EpilogueOf<Tile, Format> epilogue(params, shared, rank);
    TileCoordinates tile;
    wait_for_previous_grids();  // nothing above touches global memory
    while (main_loop.next(tile)) {
      multiply(tile, main_loop, epilogue, counters);
      // Together again. Else the compiler takes lanes to be apart in all loops, and has stages and descriptors in
      // ordinary registers: ten instructions more a k block, and a wait before each product.
      __syncwarp();
    }
  }
  // A block must not leave while another may still write to its shared memory or barriers.
  if constexpr (Tile::kCluster > 1) {
    __syncwarp();
    ptx::cluster_sync();
  }
}

}  // namespace w4afp8
