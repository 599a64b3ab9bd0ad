// SPDX-License-Identifier: Apache-2.0
// A C++ program that links libautoep.so and knows nothing but its public headers. There is no Python in this process.
#include <ATen/ops/allclose.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "plugin/load/load.h"
#include "tests/plugin/load/sample_directory.h"

namespace autoep {
namespace {

TEST(SharedLibrary, LoadsAndRunsWithoutPython) {
  const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / "shared_library";
  const SampleDirectory sample = MakeDirectory(directory, {.ep_size = 1});
  torch::jit::Module model = Load(directory.string());
  const at::Tensor x = at::randn({5, 6}), ids = at::randint(4, {5, 2}, at::kLong), weights = at::rand({5, 2});
  const at::Tensor out = model.forward({x, ids, weights}).toTensor();
  EXPECT_TRUE(at::allclose(out, sample.Reference(x, ids, weights), 1e-4, 1e-4));
  EXPECT_EQ(dlsym(RTLD_DEFAULT, "Py_Initialize"), nullptr);
  std::filesystem::remove_all(directory);
}

TEST(SharedLibrary, FailsWithAStatusOrAnException) {
  const Result<torch::jit::Module> model = TryLoad("/nowhere");
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), Code::kInput);
  EXPECT_THROW(Load("/nowhere"), c10::Error);
}

}  // namespace
}  // namespace autoep
