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

// Host side of one kernel instance: tensor map, shared memory, grid, launch.
#pragma once

#include "common/device.h"
#include "common/large_kernel.cuh"
#include "common/launch_counter.h"
#include "grouped_gemm/kernel.cuh"
#include "grouped_gemm/tile_bounds.h"
#include "grouped_gemm/tile_choice.h"
#include "grouped_gemm/token_maps.h"

namespace w4afp8 {

template <class Tile, class Format>
cudaError_t launch_tile(const GroupGemmParams& params, const Device& device, cudaStream_t stream) {
  using Storage = SharedStorage<Tile, Format>;
  const auto shared_bytes = [](int64_t experts) constexpr {
    return sizeof(Storage) + sizeof(int32_t) * TileScheduler<Tile>::words(experts);
  };
  static_assert(shared_bytes(kMaxExperts) <= kMaxSharedBytes, "the stages do not fit");
  const TokenMaps<Tile>* const token_maps = recent_token_maps<Tile>(params);
  if (token_maps == nullptr) return cudaErrorInvalidValue;

  const int clusters = clusters_of<Tile>(params, device.sm_count);
  auto plan = TilePlan<Tile>::template without_counts<Storage::kHeightStep>(params, clusters);
  LaunchCounters* const counters =
      may_take<Tile>(params, device.sm_count) ? launch_counters(device.index, stream) : nullptr;
  plan.may_take = counters != nullptr;
  plan.may_pause = kPauses<Tile, Format> && plan.may_take && may_pause<Tile>(params);
  const LaunchShape shape = {dim3(clusters * Tile::kCluster), Tile::kThreads,
                             static_cast<int64_t>(shared_bytes(params.tokens.experts)),
                             Tile::kCluster, /*starts_early=*/true};
  return LargeKernel<group_gemm_kernel<Tile, Format>>::launch(
      device, kMaxSharedBytes, shape, stream, params, *token_maps, plan, counters);
}

template <class Format>
cudaError_t launch_kind(TileKind tile, const GroupGemmParams& params, cudaStream_t stream) {
  const Device device = current_device();
  if (const cudaError_t error = ensure_context(device.index)) return error;
  return with_tile<Format>(tile, params, device.sm_count, [&](auto shape) {
    return launch_tile<decltype(shape), Format>(params, device, stream);
  });
}

template <class Format>
cudaError_t launch_format(TileKind tile, const GroupGemmParams& params, cudaStream_t stream) {
  return is_gated(params.activation) ? launch_kind<Gated<Format>>(tile, params, stream)
                                     : launch_kind<Format>(tile, params, stream);
}

}  // namespace w4afp8
