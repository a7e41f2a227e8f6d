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

// The pybind module w4afp8._ops: the operators without Paddle's dispatch, for eager tensors. Every
// parameter arrives as a plain Python object, so that a wrong one gets the same message as a wrong
// tensor.

#include "ops.h"

// Paddle's pybind header wants PyTorch-compatible headers (and with them cuBLAS) wherever
// PADDLE_WITH_CUDA is defined; the casters that are used here do not depend on it.
#pragma push_macro("PADDLE_WITH_CUDA")
#undef PADDLE_WITH_CUDA
#include "paddle/utils/pybind.h"
#pragma pop_macro("PADDLE_WITH_CUDA")

#include "check.h"

namespace w4afp8 {
namespace {

std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

const Tensor& tensor_of(py::handle value, const char* name) {
  if (!paddle::pybind::PyCheckTensor(value.ptr())) fail(name, "a paddle.Tensor", type_name(value));
  return paddle::pybind::CastPyArg2Tensor(value.ptr(), 0);
}

const Tensor* optional_tensor_of(py::handle value, const char* name) {
  return value.is_none() ? nullptr : &tensor_of(value, name);
}

int64_t int_of(py::handle value, const char* name) {
  if (PyBool_Check(value.ptr()) || !PyIndex_Check(value.ptr())) {
    fail(name, "an int", type_name(value));
  }
  int overflow = 0;
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) throw py::error_already_set();
  const int64_t result = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) fail(name, "an int of 64 bits", py::str(index));
  return result;
}

double float_of(py::handle value, const char* name) {
  const double result = PyFloat_AsDouble(value.ptr());
  if (result == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    fail(name, "a float", type_name(value));
  }
  return result;
}

bool bool_of(py::handle value, const char* name) {
  if (!PyBool_Check(value.ptr())) fail(name, "a bool", type_name(value));
  return value.ptr() == Py_True;
}

std::string_view str_of(py::handle value, const char* name) {
  Py_ssize_t size = 0;
  const char* text =
      PyUnicode_Check(value.ptr()) ? PyUnicode_AsUTF8AndSize(value.ptr(), &size) : nullptr;
  if (text == nullptr) {
    PyErr_Clear();
    fail(name, "a str", type_name(value));
  }
  return {text, static_cast<size_t>(size)};
}

py::object to_python(const Tensor& t) {
  return py::reinterpret_steal<py::object>(paddle::pybind::ToPyObject(t));
}

template <size_t kCount>
py::tuple to_python(const std::array<Tensor, kCount>& tensors) {
  py::tuple result(kCount);
  for (size_t i = 0; i < kCount; ++i) result[i] = to_python(tensors[i]);
  return result;
}

// Lets other Python threads run meanwhile.
template <typename Body>
auto without_gil(Body&& body) {
  const py::gil_scoped_release release;
  return body();
}

py::object group_gemm_py(py::handle x, py::handle weight, py::handle weight_scale,
                         py::handle tokens, py::handle group_scale, py::handle x_scale,
                         py::handle bias, py::handle weight_format, py::handle group_size,
                         py::handle token_padding, py::handle max_tokens, py::handle out_dtype,
                         py::handle accumulation, py::handle activation) {
  const Tensor &x_ = tensor_of(x, "x"), &weight_ = tensor_of(weight, "weight"),
               &weight_scale_ = tensor_of(weight_scale, "weight_scale"),
               &tokens_ = tensor_of(tokens, "tokens");
  const Tensor *group_scale_ = optional_tensor_of(group_scale, "group_scale"),
               *x_scale_ = optional_tensor_of(x_scale, "x_scale"),
               *bias_ = optional_tensor_of(bias, "bias");
  const std::string_view format = str_of(weight_format, "weight_format"),
                         dtype = str_of(out_dtype, "out_dtype"),
                         accumulation_ = str_of(accumulation, "accumulation"),
                         activation_ = str_of(activation, "activation");
  const int64_t group = int_of(group_size, "group_size"),
                padding = int_of(token_padding, "token_padding"),
                most = int_of(max_tokens, "max_tokens");
  return to_python(without_gil([&] {
    return group_gemm(x_, weight_, weight_scale_, tokens_, group_scale_, x_scale_, bias_, format,
                      group, padding, most, dtype, accumulation_, activation_);
  }));
}

py::object pack_weight_py(py::handle codes, py::handle weight_format) {
  const Tensor& codes_ = tensor_of(codes, "codes");
  const std::string_view format = str_of(weight_format, "weight_format");
  return to_python(without_gil([&] { return pack_weight(codes_, format); }));
}

py::object unpack_weight_py(py::handle packed, py::handle weight_format, py::handle out_features,
                            py::handle in_features) {
  const Tensor& packed_ = tensor_of(packed, "packed");
  const std::string_view format = str_of(weight_format, "weight_format");
  const int64_t out = int_of(out_features, "out_features"), in = int_of(in_features, "in_features");
  return to_python(without_gil([&] { return unpack_weight(packed_, format, out, in); }));
}

py::object quant_per_token_py(py::handle x) {
  const Tensor& x_ = tensor_of(x, "x");
  return to_python(without_gil([&] { return quant_per_token(x_); }));
}

py::object activation_quant_py(py::handle h, py::handle tokens, py::handle activation,
                               py::handle token_padding, py::handle hadamard_block_size) {
  const Tensor &h_ = tensor_of(h, "h"), &tokens_ = tensor_of(tokens, "tokens");
  const std::string_view kind = str_of(activation, "activation");
  const int64_t padding = int_of(token_padding, "token_padding"),
                size = int_of(hadamard_block_size, "hadamard_block_size");
  return to_python(without_gil([&] { return activation_quant(h_, tokens_, kind, padding, size); }));
}

py::object moe_route_py(py::handle logits, py::handle correction_bias, py::handle topk,
                        py::handle score, py::handle norm_topk_prob,
                        py::handle routed_scaling_factor, py::handle n_group,
                        py::handle topk_group) {
  const Tensor& logits_ = tensor_of(logits, "logits");
  const Tensor* bias = optional_tensor_of(correction_bias, "correction_bias");
  const int64_t slots = int_of(topk, "topk");
  const std::string_view kind = str_of(score, "score");
  const bool norm = bool_of(norm_topk_prob, "norm_topk_prob");
  const double factor = float_of(routed_scaling_factor, "routed_scaling_factor");
  const int64_t groups = int_of(n_group, "n_group"), kept = int_of(topk_group, "topk_group");
  return to_python(without_gil(
      [&] { return moe_route(logits_, bias, slots, kind, norm, factor, groups, kept); }));
}

py::object moe_dispatch_py(py::handle x, py::handle topk_ids, py::handle experts,
                           py::handle token_padding, py::handle first_expert) {
  const Tensor &x_ = tensor_of(x, "x"), &ids = tensor_of(topk_ids, "topk_ids");
  const int64_t count = int_of(experts, "experts"),
                padding = int_of(token_padding, "token_padding"),
                first = int_of(first_expert, "first_expert");
  return to_python(without_gil([&] { return moe_dispatch(x_, ids, count, padding, first); }));
}

py::object moe_combine_py(py::handle y, py::handle topk_weights, py::handle row_index,
                          py::handle shared_output) {
  const Tensor &y_ = tensor_of(y, "y"), &weights = tensor_of(topk_weights, "topk_weights"),
               &rows = tensor_of(row_index, "row_index");
  const Tensor* shared = optional_tensor_of(shared_output, "shared_output");
  return to_python(without_gil([&] { return moe_combine(y_, weights, rows, shared); }));
}

// A tuple (weight, weight_scale, group_scale, bias, weight_format, group_size, accumulation).
ProjectionArguments projection_of(const py::tuple& parts) {
  return {tensor_of(parts[0], "weight"),
          tensor_of(parts[1], "weight_scale"),
          optional_tensor_of(parts[2], "group_scale"),
          optional_tensor_of(parts[3], "bias"),
          str_of(parts[4], "weight_format"),
          int_of(parts[5], "group_size"),
          str_of(parts[6], "accumulation")};
}

// A tuple (up_gate, down, activation, hadamard_block_size, max_tokens).
ExpertsArguments experts_of(const py::tuple& parts) {
  return {projection_of(parts[0]), projection_of(parts[1]), str_of(parts[2], "activation"),
          int_of(parts[3], "hadamard_block_size"), int_of(parts[4], "max_tokens")};
}

// This and moe_ffn are called by layers only, whose tuples have the right lengths.
py::object moe_experts_py(py::handle x, py::handle tokens, py::handle x_scale,
                          const py::tuple& experts, py::handle out_dtype,
                          py::handle token_padding) {
  const Tensor &x_ = tensor_of(x, "x"), &tokens_ = tensor_of(tokens, "tokens");
  const Tensor* x_scale_ = optional_tensor_of(x_scale, "x_scale");
  const ExpertsArguments arguments = experts_of(experts);
  const std::string_view dtype = str_of(out_dtype, "out_dtype");
  const int64_t padding = int_of(token_padding, "token_padding");
  return to_python(
      without_gil([&] { return moe_experts(x_, tokens_, x_scale_, arguments, dtype, padding); }));
}

py::object moe_ffn_py(py::handle x, py::handle logits, py::handle shared_output,
                      const py::tuple& routing, const py::tuple& experts, py::handle first_expert) {
  const MoeFfnArguments arguments{tensor_of(x, "x"),
                                  tensor_of(logits, "logits"),
                                  optional_tensor_of(shared_output, "shared_output"),
                                  optional_tensor_of(routing[0], "correction_bias"),
                                  int_of(routing[1], "topk"),
                                  str_of(routing[2], "score"),
                                  bool_of(routing[3], "norm_topk_prob"),
                                  float_of(routing[4], "routed_scaling_factor"),
                                  int_of(routing[5], "n_group"),
                                  int_of(routing[6], "topk_group"),
                                  experts_of(experts),
                                  int_of(first_expert, "first_expert")};
  return to_python(without_gil([&] { return moe_ffn(arguments); }));
}

py::object mla_k_up_py(py::handle q_nope, py::handle w_k, py::handle w_k_scale, py::handle q_scale,
                       py::handle out_dtype) {
  const Tensor &q = tensor_of(q_nope, "q_nope"), &weight = tensor_of(w_k, "w_k"),
               &scale = tensor_of(w_k_scale, "w_k_scale");
  const Tensor* rows = optional_tensor_of(q_scale, "q_scale");
  const std::string_view type = str_of(out_dtype, "out_dtype");
  return to_python(without_gil([&] { return mla_k_up(q, weight, scale, rows, type); }));
}

py::object mla_v_up_py(py::handle x, py::handle w_v, py::handle w_v_scale, py::handle x_scale,
                       py::handle out_dtype) {
  const Tensor &x_ = tensor_of(x, "x"), &weight = tensor_of(w_v, "w_v"),
               &scale = tensor_of(w_v_scale, "w_v_scale");
  const Tensor* rows = optional_tensor_of(x_scale, "x_scale");
  const std::string_view type = str_of(out_dtype, "out_dtype");
  return to_python(without_gil([&] { return mla_v_up(x_, weight, scale, rows, type); }));
}

py::dict build_info() {
  py::dict info;
  info["version"] = W4AFP8_VERSION;
  info["paddle_version"] = W4AFP8_PADDLE_VERSION;
#ifdef W4AFP8_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = W4AFP8_CUDA_VERSION;
  info["cutlass_version"] = W4AFP8_CUTLASS_VERSION;
  info["arch"] = "sm_90a";
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cutlass_version"] = py::none();
  info["arch"] = py::none();
#endif
  return info;
}

}  // namespace
}  // namespace w4afp8

PYBIND11_MODULE(_ops, m) {
  using py::arg;
  using namespace w4afp8;  // NOLINT(build/namespaces)
  m.doc() = "The operators of w4afp8 on eager tensors; w4afp8.ops documents and types them.";
  m.def("group_gemm", group_gemm_py, arg("x"), arg("weight"), arg("weight_scale"), arg("tokens"),
        arg("group_scale"), arg("x_scale"), arg("bias"), arg("weight_format"), arg("group_size"),
        arg("token_padding"), arg("max_tokens"), arg("out_dtype"), arg("accumulation"),
        arg("activation"));
  m.def("pack_weight", pack_weight_py, arg("codes"), arg("weight_format"));
  m.def("unpack_weight", unpack_weight_py, arg("packed"), arg("weight_format"), arg("out_features"),
        arg("in_features"));
  m.def("mla_k_up", mla_k_up_py, arg("q_nope"), arg("w_k"), arg("w_k_scale"), arg("q_scale"),
        arg("out_dtype"));
  m.def("mla_v_up", mla_v_up_py, arg("x"), arg("w_v"), arg("w_v_scale"), arg("x_scale"),
        arg("out_dtype"));
  m.def("quant_per_token", quant_per_token_py, arg("x"));
  m.def("activation_quant", activation_quant_py, arg("h"), arg("tokens"), arg("activation"),
        arg("token_padding"), arg("hadamard_block_size"));
  m.def("moe_route", moe_route_py, arg("logits"), arg("correction_bias"), arg("topk"), arg("score"),
        arg("norm_topk_prob"), arg("routed_scaling_factor"), arg("n_group"), arg("topk_group"));
  m.def("moe_dispatch", moe_dispatch_py, arg("x"), arg("topk_ids"), arg("experts"),
        arg("token_padding"), arg("first_expert"));
  m.def("moe_combine", moe_combine_py, arg("y"), arg("topk_weights"), arg("row_index"),
        arg("shared_output"));
  m.def("moe_experts", moe_experts_py, arg("x"), arg("tokens"), arg("x_scale"), arg("experts"),
        arg("out_dtype"), arg("token_padding"));
  m.def("moe_ffn", moe_ffn_py, arg("x"), arg("logits"), arg("shared_output"), arg("routing"),
        arg("experts"), arg("first_expert"));
  m.def("fuses_activation", fuses_activation, arg("rows"), arg("outputs"), arg("in_features"));
  m.def("build_info", build_info, "What was built into this extension.");
}
