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

// Which instance runs how many tokens and heads, by what was measured (docs/mla.md). Included by
// instances/*.cu, one for each operator and type.
#pragma once

#include "mla_up/instances.h"
#include "mla_up/launch_tile.cuh"

namespace w4afp8 {

//                         tokens, rows, out blocks, splits, stages, blocks per multiprocessor
using MlaKUp16 = MlaShape<16, 1, 1, 1, 1, 5>;
using MlaKUp16Heads = MlaShape<16, 1, 2, 1, 1, 4>;
using MlaKUp32 = MlaShape<32, 1, 1, 1, 1, 4>;
using MlaKUp64 = MlaShape<64, 1, 1, 1, 1, 4>;
using MlaKUpHeads = MlaShape<64, 1, 2, 1, 2, 4>;
using MlaKUpMany = MlaShape<64, 2, 1, 1, 3, 2>;
using MlaKUpWide = MlaShape<64, 4, 2, 1, 3, 1>;

using MlaVUp16 = MlaShape<16, 1, 1, 2, 1, 2>;
using MlaVUp16Split = MlaShape<16, 1, 1, 4, 1, 1>;
using MlaVUp16Heads = MlaShape<16, 1, 1, 4, 1, 2>;
using MlaVUp32 = MlaShape<32, 1, 1, 2, 1, 2>;
using MlaVUp64 = MlaShape<64, 1, 1, 2, 1, 2>;
using MlaVUp64Rows = MlaShape<64, 2, 1, 1, 1, 2>;
using MlaVUp128Half = MlaShape<128, 1, 1, 1, 1, 1>;
using MlaVUp128 = MlaShape<128, 2, 1, 1, 1, 1>;
using MlaVUpMany = MlaShape<128, 2, 1, 1, 4, 1>;

// Fragments of 64 outputs x kTokens tokens: the warpgroups that can be busy.
template <class Shape>
int64_t fragments(const MlaUpParams& params) {
  return params.heads * ceil_div(params.out_features, kMlaBlock) *
         ceil_div(params.tokens, Shape::kTokens);
}

// Blocks of tiles of kTokens tokens.
template <class Shape>
int64_t blocks(const MlaUpParams& params) {
  return params.heads * ceil_div(params.out_features, Shape::kOut) *
         ceil_div(params.tokens, Shape::kTokens);
}

// A block for each fragment while one wave of blocks has them all, else blocks that keep their
// weights.
template <DataType kType, int kInBlocks>
cudaError_t launch_k_up(const MlaUpParams& params, cudaStream_t stream) {
  constexpr int64_t kWave = 1024;  // fragments
  const auto launch = [&](auto shape) {
    return launch_mla_tile<MlaTile<MlaUp::kKUp, kType, kInBlocks, decltype(shape)>>(params, stream);
  };
  if (params.tokens <= 16) {
    return fragments<MlaKUp16>(params) < kWave ? launch(MlaKUp16{}) : launch(MlaKUp16Heads{});
  }
  if (params.tokens <= 32) return launch(MlaKUp32{});
  // About two a multiprocessor are faster in one block each of two warpgroups.
  const bool in_pairs =
      fragments<MlaKUp64>(params) > kWave / 8 && fragments<MlaKUp64>(params) <= kWave / 4;
  if (in_pairs) return launch(MlaKUpMany{});
  if (fragments<MlaKUp64>(params) < kWave) return launch(MlaKUp64{});
  // The registers of these blocks hold no more weights, nor FP16's.
  if constexpr (kType == DataType::kBFloat16 && kInBlocks <= 2) {
    // Heads alone fill the device, and few tokens leave each block few tiles.
    const bool heads_fill = fragments<MlaKUp64>(params) >= kWave * ceil_div(params.tokens, 64);
    if (heads_fill && params.tokens <= 256) return launch(MlaKUpHeads{});
    // Outputs about as large as L2: here reading the tokens once counts most.
    const int64_t outputs = params.tokens * params.heads * params.out_features;
    if (outputs >= 3 << 23 && outputs < 3 << 24) return launch(MlaKUpWide{});
  }
  return launch(MlaKUpMany{});
}

template <DataType kType>
cudaError_t launch_k_up(const MlaUpParams& params, cudaStream_t stream) {
  if (params.in_features == 64) return launch_k_up<kType, 1>(params, stream);
  if (params.in_features == 128) return launch_k_up<kType, 2>(params, stream);
  return launch_k_up<kType, 3>(params, stream);
}

// The narrowest tiles that one wave of blocks has all of; the long sums are split among warpgroups
// while there are few.
template <DataType kType, int kInBlocks>
cudaError_t launch_v_up(const MlaUpParams& params, cudaStream_t stream) {
  constexpr int64_t kWave = 256, kFew = 128;  // fragments
  const auto launch = [&](auto shape) {
    return launch_mla_tile<MlaTile<MlaUp::kVUp, kType, kInBlocks, decltype(shape)>>(params, stream);
  };
  if (fragments<MlaVUp16>(params) <= kFew) return launch(MlaVUp16Split{});
  if (params.tokens <= 16) {
    return fragments<MlaVUp16>(params) <= kWave ? launch(MlaVUp16Heads{}) : launch(MlaVUp16{});
  }
  const int64_t most_of_32 = params.tokens <= 32 ? kWave : kFew;
  if (fragments<MlaVUp32>(params) <= most_of_32) return launch(MlaVUp32{});
  if (has_boxes(params)) {
    if (fragments<MlaVUp64>(params) <= kFew) return launch(MlaVUp64{});
    if (fragments<MlaVUp128Half>(params) <= kFew) return launch(MlaVUp128Half{});
    if (blocks<MlaVUp64Rows>(params) <= kFew) return launch(MlaVUp64Rows{});
    if constexpr (kInBlocks <= 8) {  // longer ones do not fit
      if (blocks<MlaVUp128>(params) <= kFew) return launch(MlaVUp128{});
    }
  }
  return launch(MlaVUpMany{});
}

template <DataType kType>
cudaError_t launch_v_up(const MlaUpParams& params, cudaStream_t stream) {
  if (params.in_features == 256) return launch_v_up<kType, 4>(params, stream);
  if (params.in_features == 512) return launch_v_up<kType, 8>(params, stream);
  return launch_v_up<kType, 12>(params, stream);
}

}  // namespace w4afp8
