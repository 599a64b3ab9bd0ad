// SPDX-License-Identifier: Apache-2.0
// Two launches: up with its gated activation, and down.
#include "plugin/ops/experts/hopper_cuda.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>
#include <string_view>

#include "plugin/ops/grouped/grouped_cuda.h"
#include "plugin/ops/launch_cuda.h"

namespace autoep::ops::cuda {
namespace {

bool SwitchedOff() {
  const char* choice = std::getenv("AUTOEP_EXPERTS");
  return choice != nullptr && std::string_view(choice) == "torch";
}

// What both products have in common.
GroupedProduct Product(const at::Tensor& weight, const std::optional<at::Tensor>& bias, int64_t rows) {
  GroupedProduct product;
  product.in_rows = product.rows = rows;
  product.weight = weight.const_data_ptr();
  product.bias = DataOrNull(bias);
  product.slots = weight.size(0);
  product.depth = weight.size(2);
  product.type = RowTypeOf(weight.scalar_type());
  return product;
}

GroupedProduct Up(const ExpertsCall& call, int64_t rows) {
  GroupedProduct product = Product(call.gate_up, call.gate_up_bias, rows);
  if (call.activation.gated) product.activation = ActivationOf(call);
  product.columns = call.down.size(2);
  return product;
}

GroupedProduct Down(const ExpertsCall& call, int64_t rows) {
  GroupedProduct product = Product(call.down, call.down_bias, rows);
  product.columns = call.down.size(1);
  product.only_in_is_fresh = true;
  return product;
}

template <typename Product>
void Launch(const Product& product) {
  const char* error =
      LaunchHopper(product, at::cuda::getCurrentDeviceProperties()->multiProcessorCount, c10::cuda::getCurrentCUDAStream());
  TORCH_CHECK(error == nullptr, "autoep: the experts' kernel did not start: ", error);
}

}  // namespace

ActivationCall ActivationOf(const ExpertsCall& call) { return {call.activation, call.alpha, call.limit}; }

bool HopperRuns(const ExpertsCall& call, int64_t rows) {
  const at::ScalarType type = call.rows.scalar_type();
  if (type != at::kBFloat16 && type != at::kHalf) return false;
  const cudaDeviceProp* device = at::cuda::getDeviceProperties(call.rows.get_device());
  GroupedProduct up = Up(call, rows);
  up.in = call.rows.const_data_ptr();
  return device->major == 9 && device->minor == 0 && HopperCan(up) && HopperCan(Down(call, rows)) && !SwitchedOff();
}

void HopperForward(const ExpertsCall& call, const GroupedRows& rows, const ForwardBuffers& buffers) {
  // Only gated activations are part of the product; another is a pass of its own.
  const bool gated = call.activation.gated;
  GroupedProduct up = Up(call, rows.count);
  up.in = call.rows.const_data_ptr();
  up.in_rows = call.rows.size(0);
  up.source = rows.source;
  up.only_in_is_fresh = rows.just_copied;
  up.hidden = gated ? buffers.hidden : nullptr;
  up.out = gated ? buffers.activated : buffers.hidden;
  GroupedProduct down = Down(call, rows.count);
  down.in = buffers.activated;
  up.ends = down.ends = rows.ends;
  down.out = buffers.out;
  at::Tensor counters;
  if (!ReadsWeights(up)) {
    if (rows.zeros == nullptr) counters = at::zeros({2}, call.rows.options().dtype(at::kInt));
    up.next_tile = rows.zeros == nullptr ? counters.mutable_data_ptr<int32_t>() : rows.zeros;
    down.next_tile = up.next_tile + 1;
  }
  Launch(up);
  if (!gated) {
    ActivateRows(ActivationOf(call), {buffers.hidden, up.type}, nullptr, nullptr, 0, rows.count, down.depth, buffers.activated,
                 c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  Launch(down);
}

ExpertsOut HopperForward(const ExpertsCall& call, const GroupedRows& rows, bool keep_hidden, const at::Tensor& out) {
  const at::TensorOptions options = call.rows.options();
  const bool hidden = keep_hidden || !call.activation.gated;
  ExpertsOut result{{}, hidden ? at::empty({rows.count, call.gate_up.size(1)}, options) : at::Tensor()};
  const at::Tensor activated = at::empty({rows.count, call.down.size(2)}, options);
  result.out = out.defined() ? out : at::empty({rows.count, call.down.size(1)}, options);
  HopperForward(call, rows, {hidden ? result.hidden.data_ptr() : nullptr, activated.data_ptr(), result.out.data_ptr()});
  return result;
}

at::Tensor HopperAcross(const at::Tensor& rows, const at::Tensor& weight, const at::Tensor& ends) {
  GroupedProduct product;
  product.in = rows.const_data_ptr();
  product.in_rows = rows.size(0);
  product.ends = ends.const_data_ptr<int32_t>();
  product.weight = weight.const_data_ptr();
  product.weight_across = true;
  product.slots = weight.size(0);
  product.depth = weight.size(1);
  product.columns = weight.size(2);
  product.rows = rows.size(0);
  product.type = RowTypeOf(rows.scalar_type());
  at::Tensor out = at::empty({product.rows, product.columns}, rows.options());
  product.out = out.data_ptr();
  at::Tensor counter;
  if (!ReadsWeights(product)) {
    counter = at::zeros({1}, rows.options().dtype(at::kInt));
    product.next_tile = counter.mutable_data_ptr<int32_t>();
  }
  Launch(product);
  return out;
}

void HopperWeightGrad(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends, const at::Tensor& out) {
  GroupedGradient product;
  product.left = left.const_data_ptr();
  product.right = right.const_data_ptr();
  product.ends = ends.const_data_ptr<int32_t>();
  product.out = out.mutable_data_ptr();
  product.rows = left.size(0);
  product.slots = out.size(0);
  product.out_rows = left.size(1);
  product.columns = right.size(1);
  product.out_pitch = out.stride(1);
  product.type = RowTypeOf(left.scalar_type());
  TORCH_CHECK(HopperCan(product), "autoep: the gradient of the experts' weights does not suit its kernel: ", out.sizes());
  Launch(product);
}

at::Tensor HopperWeightGrad(const at::Tensor& left, const at::Tensor& right, const at::Tensor& ends) {
  at::Tensor out = at::empty({ends.size(0), left.size(1), right.size(1)}, left.options());
  HopperWeightGrad(left, right, ends, out);
  return out;
}

}  // namespace autoep::ops::cuda
