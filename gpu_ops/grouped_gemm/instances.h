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

// One function a weight format and way to sum, each in a translation unit of its own (instances/).
#pragma once

#include "grouped_gemm/launch.h"
#include "grouped_gemm/tile_choice.h"

namespace w4afp8 {

cudaError_t launch_int4(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);
cudaError_t launch_int4_scaled(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);
cudaError_t launch_int4_promoted(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);
cudaError_t launch_int4_carried(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);
cudaError_t launch_mxfp4(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);
cudaError_t launch_mxfp4_promoted(TileKind tile, const GroupGemmParams& params,
                                  cudaStream_t stream);
cudaError_t launch_mxfp4_carried(TileKind tile, const GroupGemmParams& params, cudaStream_t stream);

}  // namespace w4afp8
