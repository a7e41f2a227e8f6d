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

#include "common/device.h"
#include "common/launch_kernel.cuh"
#include "weight_pack/kernel.cuh"
#include "weight_pack/launch.h"

namespace w4afp8 {
namespace {

using PackKernel = void (*)(WeightPackParams);

int64_t sub_blocks(const WeightPackParams& params) {
  const WeightLayout layout = params.weight_layout();
  return params.experts * (layout.padded_out() / kSubBlockOut) * layout.k_blocks();
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

cudaError_t launch(PackKernel int4, PackKernel mxfp4, const WeightPackParams& params,
                   cudaStream_t stream) {
  return launch_kernel(params.format == WeightFormat::kInt4 ? int4 : mxfp4, sub_blocks(params),
                       kPackThreads, stream, params);
}

}  // namespace

const char* check(const WeightPackParams& params) {
  if (const char* reason = check_device()) return reason;
  if (params.in_features % kStepCodes != 0) return "in_features must be a multiple of 32";
  if (sub_blocks(params) > kMaxGrid) return "the weight has more than 2^31 - 1 sub-blocks";
  if (!is_aligned(params.codes)) return "the codes must be 16-byte aligned";
  if (!is_aligned(params.packed)) return "the packed weight must be 16-byte aligned";
  return nullptr;
}

cudaError_t launch_pack_weight(const WeightPackParams& params, cudaStream_t stream) {
  return launch(pack_weight_kernel<WeightFormat::kInt4>, pack_weight_kernel<WeightFormat::kMxfp4>,
                params, stream);
}

cudaError_t launch_unpack_weight(const WeightPackParams& params, cudaStream_t stream) {
  return launch(unpack_weight_kernel<WeightFormat::kInt4>,
                unpack_weight_kernel<WeightFormat::kMxfp4>, params, stream);
}

}  // namespace w4afp8
