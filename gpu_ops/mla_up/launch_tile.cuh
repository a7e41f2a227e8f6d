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

// Host side of one kernel instance: shared memory, grid, launch.
#pragma once

#include <algorithm>
#include <atomic>

#include "common/device.h"
#include "mla_up/kernel.cuh"

namespace w4afp8 {

// Raises the kernel's shared-memory limit once per device.
template <class Tile>
cudaError_t prepare_mla_kernel() {
  static std::atomic<uint64_t> prepared{0};  // one bit a device
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (bit != 0 && (prepared.load(std::memory_order_acquire) & bit) != 0) return cudaSuccess;
  const cudaError_t set = cudaFuncSetAttribute(
      mla_up_kernel<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  if (set == cudaSuccess) prepared.fetch_or(bit, std::memory_order_release);
  return set;
}

// Blocks along the tokens: so many that all blocks run at a time, as each keeps its weights for all of
// its tiles.
template <class Tile>
int64_t chunks_of(const MlaUpParams& params) {
  const int64_t blocks = ceil_div(params.out_features, Tile::kOut) * params.heads;
  const int64_t tiles = ceil_div(params.tokens, Tile::kTokens);
  if (Tile::kOneTile) return tiles;
  return std::clamp<int64_t>(int64_t{sm_count()} * Tile::kBlocksPerSm / blocks, 1, tiles);
}

template <class Tile>
cudaError_t launch_mla_tile(const MlaUpParams& params, cudaStream_t stream) {
  const cudaError_t error = prepare_mla_kernel<Tile>();
  if (error != cudaSuccess) return error;
  cudaLaunchConfig_t launch = {};
  launch.gridDim =
      dim3(static_cast<unsigned>(ceil_div(params.out_features, Tile::kOut)),
           static_cast<unsigned>(params.heads), static_cast<unsigned>(chunks_of<Tile>(params)));
  launch.blockDim = dim3(Tile::kThreads);
  launch.dynamicSmemBytes = Tile::kSharedBytes;
  launch.stream = stream;
  return cudaLaunchKernelEx(&launch, mla_up_kernel<Tile>, params);
}

}  // namespace w4afp8
