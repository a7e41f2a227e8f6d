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

#include "mla_up/params.h"

namespace w4afp8 {

// nullptr where launch_mla_up can run on the current device, else the reason, a sentence.
const char* check(const MlaUpParams& params);

// One kernel for all heads. Allocates nothing, synchronises nothing, can be captured in a graph.
cudaError_t launch_mla_up(const MlaUpParams& params, cudaStream_t stream);

}  // namespace w4afp8
