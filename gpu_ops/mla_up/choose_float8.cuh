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

// The instances of FP8 activations. These are for many tokens, where activations are most of the
// bytes: one shape does all.
#pragma once

#include "mla_up/instances.h"
#include "mla_up/launch_tile.cuh"

namespace w4afp8 {

//                              tokens, rows, out blocks, splits, stages, blocks per multiprocessor
using MlaFloat8KUp = MlaShape<64, 2, 1, 1, 3, 2>;
using MlaFloat8VUp = MlaShape<64, 1, 1, 1, 4, 3>;
using MlaFloat8VUpLong = MlaShape<64, 1, 1, 1, 4, 2>;  // more weights in registers

template <MlaUp kOp, DataType kType, int kInBlocks>
cudaError_t launch_float8_tile(const MlaUpParams& params, cudaStream_t stream) {
  using Shape =
      std::conditional_t<kOp == MlaUp::kKUp, MlaFloat8KUp,
                         std::conditional_t<kInBlocks <= 8, MlaFloat8VUp, MlaFloat8VUpLong>>;
  return launch_mla_tile<MlaTile<kOp, kType, kInBlocks, Shape, true>>(params, stream);
}

// kUnit: inputs of the smallest size; the others are twice and three times that.
template <MlaUp kOp, DataType kType, int kUnit>
cudaError_t launch_float8(const MlaUpParams& params, cudaStream_t stream) {
  const int64_t size = params.in_features / (64 * kUnit);
  if (size == 1) return launch_float8_tile<kOp, kType, kUnit>(params, stream);
  if (size == 2) return launch_float8_tile<kOp, kType, 2 * kUnit>(params, stream);
  return launch_float8_tile<kOp, kType, 3 * kUnit>(params, stream);
}

template <MlaUp kOp, int kUnit>
cudaError_t launch_float8(const MlaUpParams& params, cudaStream_t stream) {
  return params.type == DataType::kFloat16
             ? launch_float8<kOp, DataType::kFloat16, kUnit>(params, stream)
             : launch_float8<kOp, DataType::kBFloat16, kUnit>(params, stream);
}

}  // namespace w4afp8
