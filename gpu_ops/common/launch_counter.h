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

// Counters in global memory, one for each launch that needs one. Host only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace w4afp8 {

// A counter for one launch on `stream` of the current device: 0 when the launch begins, and put back to 0 by its
// end. nullptr where there is none.
//
// Launches that run at the same time have different ones. Eager ones take turns among 65536 of a process. A
// launch that is captured in a graph keeps its own for good, as the graph may be replayed beside anything else;
// after 65536 of these there are none left. A captured graph must not be replayed beside itself, by a second
// executable graph, which would also write the same output.
uint32_t* launch_counter(cudaStream_t stream);

}  // namespace w4afp8
