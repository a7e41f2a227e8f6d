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

#include <algorithm>

#include "common/device.h"
#include "common/launch_kernel.cuh"
#include "moe_route/combine.cuh"
#include "moe_route/dispatch.cuh"
#include "moe_route/launch.h"
#include "moe_route/route.cuh"

namespace w4afp8 {
namespace {

constexpr int64_t kMaxSlots = int64_t{1} << 30;
constexpr const char* kTooManyExperts = "more than 1024 experts";
constexpr const char* kTooManySlots = "topk is larger than 32";

RouteGroups groups_of(const MoeRouteParams& params) {
  const int size = static_cast<int>(params.group_experts());
  int log_team = 5;
  while (params.n_group << log_team > 32) --log_team;
  return {size, log_team, 1.0f / static_cast<float>(size)};
}

template <typename T>
cudaError_t launch_route(const MoeRouteParams& params, cudaStream_t stream) {
  auto kernel = moe_route_kernel<1, T>;
  if (params.experts > 32) kernel = moe_route_kernel<2, T>;
  if (params.experts > 64) kernel = moe_route_kernel<4, T>;
  if (params.experts > 128) kernel = moe_route_kernel<8, T>;
  if (params.experts > 256) kernel = moe_route_kernel<16, T>;
  if (params.experts > 512) kernel = moe_route_kernel<32, T>;
  return launch_dependent_kernel(kernel, ceil_div(params.num_tokens, kRouteWarps), kRouteWarps * 32,
                                 stream, params, groups_of(params));
}

template <int kWidth, int kTeamThreads>
cudaError_t launch_dispatch(const MoeDispatchParams& params, cudaStream_t stream) {
  auto kernel = params.in_type == DataType::kBFloat16
                    ? moe_dispatch_kernel<kWidth, kTeamThreads, __nv_bfloat16>
                    : moe_dispatch_kernel<kWidth, kTeamThreads, __half>;
  const int64_t groups = std::clamp<int64_t>(params.num_tokens, 1, sm_count());
  const int64_t splits = std::clamp<int64_t>(sm_count() / groups, 1, params.topk);
  return launch_dependent_kernel(kernel, groups * splits, kDispatchThreads, stream, params,
                                 DispatchGrid{static_cast<int>(splits)});
}

// Blocks that share a token: as many as keep the device busy, where it has few tokens.
template <int kWidth>
int combine_parts(const MoeCombineParams& params) {
  constexpr int64_t kBlocksEach = 16;  // for each multiprocessor
  const int64_t most = ceil_div(params.hidden, RowAdder<kWidth, __half>::kStride * kCombineChunks);
  return static_cast<int>(std::min(most, ceil_div(kBlocksEach * sm_count(), params.num_tokens)));
}

// A shared output's tokens are not zeros.
int combine_zero_blocks(const MoeCombineParams& params) {
  const bool has_zeros = params.starts_early && params.shared_output == nullptr;
  return has_zeros ? static_cast<int>(ceil_div(params.num_tokens, kZeroedTokens)) : 0;
}

template <int kWidth>
cudaError_t launch_combine(const MoeCombineParams& params, cudaStream_t stream) {
  if (params.num_tokens == 0) return cudaSuccess;
  auto kernel = params.type == DataType::kBFloat16 ? moe_combine_kernel<kWidth, __nv_bfloat16>
                                                   : moe_combine_kernel<kWidth, __half>;
  const CombineGrid grid{combine_zero_blocks(params), combine_parts<kWidth>(params)};
  return launch_dependent_kernel(kernel, grid.zero_blocks + params.num_tokens * grid.parts,
                                 kCombineThreads, stream, params, grid);
}

}  // namespace

const char* check(const MoeRouteParams& params) {
  if (const char* reason = check_device()) return reason;
  if (params.experts > kMaxExperts) return kTooManyExperts;
  if (params.topk > kMaxTopk) return kTooManySlots;
  if (params.n_group > kMaxGroups) return "more than 32 groups of experts";
  if (params.topk > params.topk_group * params.group_experts()) {
    return "topk is larger than the number of experts to choose from";
  }
  return params.num_tokens > kMaxGrid ? "more than 2^31 - 1 tokens" : nullptr;
}

const char* check(const MoeDispatchParams& params) {
  if (const char* reason = check_device()) return reason;
  if (params.experts > kMaxExperts) return kTooManyExperts;
  if (params.topk > kMaxTopk) return kTooManySlots;
  return params.num_tokens * params.topk > kMaxSlots ? "more than 2^30 slots" : nullptr;
}

const char* check(const MoeCombineParams& params) {
  if (const char* reason = check_device()) return reason;
  return params.num_tokens > kMaxGrid ? "more than 2^31 - 1 tokens" : nullptr;
}

cudaError_t launch_moe_route(const MoeRouteParams& params, cudaStream_t stream) {
  switch (params.logits_type) {
    case DataType::kFloat32: return launch_route<float>(params, stream);
    case DataType::kBFloat16: return launch_route<__nv_bfloat16>(params, stream);
    case DataType::kFloat16: return launch_route<__half>(params, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_moe_dispatch(const MoeDispatchParams& params, cudaStream_t stream) {
  const bool vectors = rows_are_vectors(params.hidden, params.x, params.permuted);
  if (!vectors) return launch_dispatch<1, kLargeTeam>(params, stream);
  return params.hidden <= kSmallTeam * kTeamChunks * kVectorWidth
             ? launch_dispatch<kVectorWidth, kSmallTeam>(params, stream)
             : launch_dispatch<kVectorWidth, kLargeTeam>(params, stream);
}

cudaError_t launch_moe_combine(const MoeCombineParams& params, cudaStream_t stream) {
  const bool vectors = rows_are_vectors(params.hidden, params.y, params.out) &&
                       rows_are_vectors(params.hidden, params.shared_output, nullptr);
  return vectors ? launch_combine<kVectorWidth>(params, stream) : launch_combine<1>(params, stream);
}

}  // namespace w4afp8
