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

// Entry of the up projections: checks, choice of the instance.
#include "common/device.h"
#include "mla_up/instances.h"

namespace w4afp8 {
namespace {

constexpr int64_t kMostHeads = 65535;  // blocks along y

}  // namespace

const char* check(const MlaUpParams& params) {
  if (const char* reason = check_device()) return reason;
  if (params.tokens >= int64_t{1} << 31) return "x has 2^31 or more tokens";
  if (params.heads > kMostHeads) return "x has more than 65535 heads";
  const int64_t in = params.in_features;
  if (params.op == MlaUp::kKUp && in != 64 && in != 128 && in != 192) {
    return "the CUDA kernel of k_up knows nope 64, 128 and 192";
  }
  if (params.op == MlaUp::kVUp && in != 256 && in != 512 && in != 768) {
    return "the CUDA kernel of v_up knows lora 256, 512 and 768";
  }
  return nullptr;
}

cudaError_t launch_mla_up(const MlaUpParams& params, cudaStream_t stream) {
  if (params.tokens == 0 || params.heads == 0) return cudaSuccess;
  if (params.x_scale != nullptr) {
    return params.op == MlaUp::kKUp ? launch_k_up_float8(params, stream)
                                    : launch_v_up_float8(params, stream);
  }
  const bool half = params.type == DataType::kFloat16;
  if (params.op == MlaUp::kKUp) {
    return half ? launch_k_up_fp16(params, stream) : launch_k_up_bf16(params, stream);
  }
  return half ? launch_v_up_fp16(params, stream) : launch_v_up_bf16(params, stream);
}

}  // namespace w4afp8
