// SPDX-License-Identifier: Apache-2.0
// Defines the modules from source, so that they are what scripted models are.
#include "tests/passes/sample_moe.h"

#include <ATen/Context.h>
#include <ATen/ops/randn.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "passes/model/moe_model.h"
#include "plugin/io/output.h"

namespace autoep::testing {
namespace {

using torch::jit::Module;

constexpr char kExpert[] = R"(
def forward(self, x):
    return torch.linear(torch.silu(torch.linear(x, self.w1)) * torch.linear(x, self.w3), self.w2)
)";

std::string MoeBody(const SampleMoe& sample, const std::string& name, const std::string& arguments) {
  std::string body = fmt::format("def {}(self, {}):\n    out = torch.zeros_like(x)\n", name, arguments);
  for (int64_t e = 0; e < sample.experts; ++e) {
    body += fmt::format("    out = out + self.experts.e{0}.forward(x) * torch.sum(w * (ids == {0}).to(w.dtype), [1], True)\n", e);
  }
  return body + "    return out\n";
}

constexpr char kRouter[] = R"(
    p = {}
    w, ids = torch.topk(p, {}, 1, True, True)
    w = w / torch.sum(w, [1], True)
)";

class Factory {
 public:
  explicit Factory(std::shared_ptr<torch::jit::CompilationUnit> unit) : unit_(std::move(unit)) {}

  Module Create(const std::string& name) { return Module(c10::QualifiedName("__torch__." + name), unit_, /*shouldMangle=*/true); }

  Module Expert(const SampleMoe& sample, at::Generator& random) {
    const bool known = expert_type_ != nullptr;
    Module expert = known ? Module(unit_, expert_type_) : Create("Expert");
    Parameter(expert, "w1", {sample.intermediate, sample.hidden}, sample, random);
    Parameter(expert, "w3", {sample.intermediate, sample.hidden}, sample, random);
    Parameter(expert, "w2", {sample.hidden, sample.intermediate}, sample, random);
    if (!known) expert.define(kExpert);
    expert_type_ = expert.type();
    return expert;
  }

  // With `like`, of the type of that block.
  Module Block(const SampleMoe& sample, bool helper, const Module* like = nullptr) {
    at::Generator random = at::globalContext().defaultGenerator(c10::kCPU).clone();
    random.set_current_seed(sample.seed);
    Module experts = like ? Module(unit_, like->attr("experts").toModule().type()) : Create("Experts");
    for (int64_t e = 0; e < sample.experts; ++e) experts.register_module(fmt::format("e{}", e), Expert(sample, random));
    Module block = like ? Module(unit_, like->type()) : Create("Block");
    Parameter(block, "gate", {sample.experts, sample.hidden}, sample, random);
    block.register_module("experts", experts);
    if (!like) DefineBlock(block, sample, helper);
    return block;
  }

 private:
  static void Parameter(Module& module, const std::string& name, std::vector<int64_t> shape, const SampleMoe& sample,
                        at::Generator& random) {
    module.register_parameter(name, at::randn(shape, random).to(sample.dtype), /*is_buffer=*/false);
  }

  static void DefineBlock(Module& block, const SampleMoe& sample, bool helper) {
    const std::string router = fmt::format(kRouter, sample.scores, sample.top_k);
    if (helper) {
      block.define(MoeBody(sample, "moe", "x, ids, w") + "\ndef forward(self, x):" + router + "    return self.moe(x, ids, w)\n");
      return;
    }
    std::string body = MoeBody(sample, "forward", "x");
    block.define(body.insert(body.find('\n'), router));
  }

  std::shared_ptr<torch::jit::CompilationUnit> unit_;
  c10::ClassTypePtr expert_type_;
};

}  // namespace

Module MakeBlock(const SampleMoe& sample, bool helper) {
  return Factory(std::make_shared<torch::jit::CompilationUnit>()).Block(sample, helper);
}

Module MakeStack(const SampleMoe& first, const SampleMoe& second, bool share_type) {
  Factory factory(std::make_shared<torch::jit::CompilationUnit>());
  Module one = factory.Block(first, false);
  Module two = factory.Block(second, false, share_type ? &one : nullptr);
  Module stack = factory.Create("Stack");
  stack.register_module("first", one);
  stack.register_module("second", two);
  stack.define("def forward(self, x):\n    y = x + self.first.forward(x)\n    return y + self.second.forward(y)\n");
  return stack;
}

std::string TempFolder(const std::string& name) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string path = fmt::format("{}/{}.{}.{}", ::testing::TempDir(), test->test_suite_name(), test->name(), name);
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

std::string Save(const Module& module, const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  const auto file = OutputFile::Create(path, &FileSystem::Real());
  EXPECT_TRUE(file.ok()) << file.status().message();
  const Status written = WriteModel(module, {}, (*file)->Sink());
  EXPECT_TRUE(written.ok()) << written.message();
  const Status finished = (*file)->Finish();
  EXPECT_TRUE(finished.ok()) << finished.message();
  return path;
}

at::Tensor Tokens(const SampleMoe& sample, int64_t count) {
  at::Generator random = at::globalContext().defaultGenerator(c10::kCPU).clone();
  random.set_current_seed(sample.seed + 1000);
  return at::randn({count, sample.hidden}, random).to(sample.dtype);
}

}  // namespace autoep::testing
