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

// Functions of the CUDA driver, found at run time: the library must load where there is no driver.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

namespace w4afp8 {

// As the driver of CUDA 12.0 has it; nullptr where there is no such function. `Function`: its PFN_ type of
// cudaTypedefs.h.
template <class Function>
Function driver_function(const char* name) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &status);
#endif
  const bool found = error == cudaSuccess && status == cudaDriverEntryPointSuccess;
  return found ? reinterpret_cast<Function>(function) : nullptr;
}

inline PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder() {
  static const auto encoder =
      driver_function<PFN_cuTensorMapEncodeTiled_v12000>("cuTensorMapEncodeTiled");
  return encoder;
}

// For calls of the driver, which need a current context: the runtime's calls make one for their thread, but for
// cudaGetDevice. One that is current already stays.
inline cudaError_t ensure_context(int device) {
  static const auto get = driver_function<PFN_cuCtxGetCurrent_v4000>("cuCtxGetCurrent");
  if (get == nullptr) return cudaErrorInsufficientDriver;
  CUcontext context = nullptr;
  const bool found = get(&context) == CUDA_SUCCESS && context != nullptr;
  return found ? cudaSuccess : cudaSetDevice(device);
}

inline PFN_cuLaunchKernelEx_v11060 kernel_launcher() {
  static const auto launcher = driver_function<PFN_cuLaunchKernelEx_v11060>("cuLaunchKernelEx");
  return launcher;
}

}  // namespace w4afp8
