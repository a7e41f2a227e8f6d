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

#pragma once

#include <cuda_runtime_api.h>

#include "activation_quant/params.h"

namespace w4afp8 {

// nullptr where the launches below can run on the current device, else the reason, a sentence.
const char* check(const QuantPerTokenParams& params);
const char* check(const ActivationQuantParams& params);

cudaError_t launch_quant_per_token(const QuantPerTokenParams& params, cudaStream_t stream);
cudaError_t launch_activation_quant(const ActivationQuantParams& params, cudaStream_t stream);

}  // namespace w4afp8
