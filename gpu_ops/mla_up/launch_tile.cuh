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

#include "common/large_kernel.cuh"
#include "mla_up/kernel.cuh"

namespace w4afp8 {

// Blocks along the tokens: so many that all blocks run at a time, as each keeps its weights for all of
// its tiles.
template <class Tile>
int64_t chunks_of(const MlaUpParams& params, const Device& device) {
  const int64_t blocks = ceil_div(params.out_features, Tile::kOut) * params.heads;
  const int64_t tiles = ceil_div(params.tokens, Tile::kTokens);
  if (Tile::kOneTile) return tiles;
  const int64_t chunks =
      std::clamp<int64_t>(int64_t{device.sm_count} * Tile::kBlocksPerSm / blocks, 1, tiles);
  // Many heads fill the device without chunks, but not evenly, and the last of long blocks end late.
  constexpr int64_t kMostTiles = 32;
  const bool cuts = Tile::kOp == MlaUp::kKUp && Tile::kOutBlocks == 1;
  return cuts ? std::max(chunks, ceil_div(tiles, kMostTiles)) : chunks;
}

// Whether tensor copies can read x: tokens apart by whole rows of heads, heads by whole inputs.
inline bool has_boxes(const MlaUpParams& params) {
  return params.x_head_stride >= params.in_features &&
         params.x_token_stride >= params.heads * params.x_head_stride &&
         params.x_token_stride % params.x_head_stride == 0;
}

// Boxes of 64 inputs x kTokens tokens of a head.
template <class Tile>
cudaError_t encode_token_map(const MlaUpParams& params, MlaTokenMap<Tile>* map) {
  if constexpr (Tile::kBoxes) {
    const auto encode = tensor_map_encoder();
    if (encode == nullptr) return cudaErrorNotSupported;
    const auto size_of = [](int64_t size) { return static_cast<cuuint64_t>(size); };
    const cuuint64_t size[3] = {size_of(params.in_features), size_of(params.heads),
                                size_of(params.tokens)};
    const cuuint64_t stride[2] = {size_of(params.x_head_stride * 2),
                                  size_of(params.x_token_stride * 2)};
    const cuuint32_t box[3] = {64, 1, Tile::kTokens}, element_stride[3] = {1, 1, 1};
    const CUresult result =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(params.x), size, stride,
               box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

template <class Tile>
cudaError_t launch_mla_tile(const MlaUpParams& params, cudaStream_t stream) {
  const Device device = current_device();
  if (const cudaError_t error = ensure_context(device.index)) return error;
  MlaTokenMap<Tile> map = {};
  const cudaError_t encoded = encode_token_map<Tile>(params, &map);
  if (encoded != cudaSuccess) return encoded;
  const auto blocks = [](int64_t count) { return static_cast<unsigned>(count); };
  const LaunchShape shape = {dim3(blocks(ceil_div(params.out_features, Tile::kOut)),
                                  blocks(params.heads), blocks(chunks_of<Tile>(params, device))),
                             Tile::kThreads, Tile::kSharedBytes, /*cluster=*/1,
                             params.starts_early()};
  return LargeKernel<mla_up_kernel<Tile>>::launch(device, Tile::kSharedBytes, shape, stream, params,
                                                  map);
}

}  // namespace w4afp8
