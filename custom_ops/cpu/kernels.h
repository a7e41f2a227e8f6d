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

// The CPU kernels: every operator over the same parameter structs as CUDA, with pointers to host
// memory. The arguments were checked by the caller; only group_gemm and mla_up use Paddle (its
// float32 matmul).
#pragma once

#include "activation_quant/params.h"
#include "grouped_gemm/params.h"
#include "mla_up/params.h"
#include "moe_route/params.h"
#include "weight_pack/params.h"

namespace w4afp8::cpu {

// Needs no more than 64 MiB beside its operands; 512 * in_features bytes past in_features 131040. With an
// activation, and the product that it is applied to.
void group_gemm(const GroupGemmParams& params);

// codes -> packed; every byte of `packed` is written.
void pack_weight(const WeightPackParams& params);
// packed -> codes; the padding is ignored.
void unpack_weight(const WeightPackParams& params);

void quant_per_token(const QuantPerTokenParams& params);
void activation_quant(const ActivationQuantParams& params);

void moe_route(const MoeRouteParams& params);
void moe_dispatch(const MoeDispatchParams& params);
void moe_combine(const MoeCombineParams& params);

void mla_up(const MlaUpParams& params);

}  // namespace w4afp8::cpu
