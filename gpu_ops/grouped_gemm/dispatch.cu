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

// Entry of the grouped GEMM: checks, choice of tile, choice of format.
#include "common/device.h"
#include "common/driver_function.h"
#include "grouped_gemm/instances.h"

namespace w4afp8 {

const char* check(const GroupGemmParams& params) {
  if (const char* reason = check_device()) return reason;
  if (params.tokens.num_rows >= int64_t{1} << 30) return "x has 2^30 or more rows";
  if (params.in_features >= int64_t{1} << 30) return "in_features is 2^30 or more";
  if (params.out_features >= int64_t{1} << 29) return "out_features is 2^29 or more";
  const int64_t tiles = (params.tokens.num_rows / 16 + params.tokens.experts) *
                        ceil_div(params.out_features, kSubBlockOut);
  if (tiles >= int64_t{1} << 31) return "tokens times out_features is too large for one launch";
  if (is_gated(params.activation) && params.out_features % (2 * kSubBlockOut) != 0) {
    return "with an activation out_features is no multiple of 128";
  }
  if (tensor_map_encoder() == nullptr) return "the CUDA driver is older than 12.0";
  return nullptr;
}

cudaError_t launch_group_gemm(const GroupGemmParams& params, cudaStream_t stream) {
  if (params.tokens.num_rows == 0 || params.tokens.experts == 0) return cudaSuccess;
  const Summation summation = summation_of(params);
  const TileKind tile = choose_tile(params);
  const GroupScaling scaling = scaling_of(params);
  if (scaling == GroupScaling::kFolded) {
    const auto launch = summation == Summation::kHalves     ? launch_mxfp4
                        : summation == Summation::kPromoted ? launch_mxfp4_promoted
                                                            : launch_mxfp4_carried;
    return launch(tile, params, stream);
  }
  if (summation == Summation::kPromoted) return launch_int4_promoted(tile, params, stream);
  if (summation == Summation::kCarried) return launch_int4_carried(tile, params, stream);
  const bool is_scaled = scaling == GroupScaling::kScaled;
  return (is_scaled ? launch_int4_scaled : launch_int4)(tile, params, stream);
}

}  // namespace w4afp8
