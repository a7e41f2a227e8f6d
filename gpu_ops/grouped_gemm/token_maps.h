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

// The tensor maps of a launch: where the copy engine finds the tokens of a tile.
#pragma once

#include <cuda.h>

#include <tuple>

#include "common/driver_function.h"
#include "common/recent.h"
#include "grouped_gemm/config.h"

namespace w4afp8 {

// Boxes of x as wide as tiles may be: one copy fetches a k block's tokens, or this block's share of them in a cluster,
// and zeros for those that the tile lacks. A row is the sum of two coordinates, less Tile::kTokens: so n tokens up to
// row `end` lie from {column, kTokens - n, end} on, and the box leaves the tensor after the last of them.
template <class Tile>
struct TokenMaps {
  CUtensorMap of_width[Tile::Widths::kCount];
};

// Where x lies, in_features and rows: all that the maps of a tile depend on.
using TokenPlace = std::tuple<const uint8_t*, int64_t, int64_t>;

// Boxes of `box_tokens` rows x 128 bytes of x in the 128-byte swizzle, for tiles of `most_tokens`: see TokenMaps.
inline bool encode_token_map(const TokenPlace& place, int box_tokens, int most_tokens,
                             CUtensorMap* map) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return false;
  const auto [x, in_features, num_rows] = place;
  const auto row_bytes = static_cast<cuuint64_t>(in_features);
  // Lies before x, where nothing is ever read.
  const cuuint64_t begin = reinterpret_cast<uintptr_t>(x) - most_tokens * row_bytes;
  const cuuint64_t size[3] = {row_bytes, static_cast<cuuint64_t>(most_tokens),
                              static_cast<cuuint64_t>(num_rows) + 1};
  const cuuint64_t stride[2] = {row_bytes, row_bytes};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(kSubBlockIn),
                             static_cast<cuuint32_t>(box_tokens), 1};
  const cuuint32_t element_stride[3] = {1, 1, 1};
  return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, reinterpret_cast<void*>(begin), size, stride,
                box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// The maps of a launch; nullptr where one cannot be encoded. Valid until the thread's next call. Encoding a map takes the
// host 0.06 us (kernel-log.md, run 124), and the same few places come again and again: a layer's activations, from the
// allocator that had them in the layer before.
template <class Tile>
const TokenMaps<Tile>* recent_token_maps(const GroupGemmParams& params) {
  static thread_local Recent<TokenPlace, TokenMaps<Tile>, 8> recent;
  const TokenPlace wanted = {params.x, params.in_features, params.tokens.num_rows};
  return recent.find(wanted, [](const TokenPlace& place, TokenMaps<Tile>& maps) {
    for (int i = 0; i < Tile::Widths::kCount; ++i) {
      const int box_tokens = Tile::Widths::at(i) / Tile::kCluster;
      if (!encode_token_map(place, box_tokens, Tile::kTokens, &maps.of_width[i])) return false;
    }
    return true;
  });
}

}  // namespace w4afp8
