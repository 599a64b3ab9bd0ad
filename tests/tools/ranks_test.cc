// SPDX-License-Identifier: Apache-2.0
// Processes of run and verify: results come back, a process that fails ends the others, and nothing is left behind. This
// program is its own worker, and some of its workers misbehave.
#include "tools/ranks.h"

#include <ATen/ops/ones.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <torch/csrc/jit/api/module.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "plugin/io/files.h"
#include "tools/inputs_file.h"

namespace autoep {
namespace {

using testing::HasSubstr;

RankOptions Here(int64_t timeout_s = 300) { return {std::filesystem::read_symlink("/proc/self/exe").string(), timeout_s}; }

RankJob Job(const std::string& model, int64_t rank = 0) {
  RankJob job;
  job.model = model;
  job.rank = rank;
  job.ranks = 4;
  return job;
}

std::string SavedModule(const TempFolder& folder) {
  torch::jit::Module module("m");
  module.define("def forward(self, a, b: int = 3):\n  return a * b, {'sum': a + a}, [a[0]]\n");
  const std::string path = folder.File("module.pt");
  module.save(path);
  return path;
}

std::unique_ptr<TempFolder> Folder() {
  auto folder = TempFolder::Create();
  EXPECT_TRUE(folder.ok());
  return std::move(*folder);
}

TEST(TempFolder, IsPrivateAndRemoved) {
  std::string path;
  {
    const auto folder = Folder();
    path = folder->path();
    EXPECT_EQ(std::filesystem::status(path).permissions(), std::filesystem::perms::owner_all);
    std::ofstream(folder->File("file")) << "text";
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(TempFolder, SaysWhatToDoWithoutOne) {
  const char* before = std::getenv("TMPDIR");
  const std::string saved = before ? before : "/tmp";
  setenv("TMPDIR", "/no/such/folder", 1);
  const auto folder = TempFolder::Create();
  setenv("TMPDIR", saved.c_str(), 1);
  EXPECT_EQ(folder.status().code(), Code::kOutput);
  EXPECT_THAT(folder.status().message(), HasSubstr("set TMPDIR"));
}

TEST(RankJob, RoundTrip) {
  RankJob job = Job("", 2);
  job.directory = "dir";
  job.block = "layers.0.mlp";
  job.store = "store";
  job.calls = {{"in", "out"}};
  const auto read = RankJob::FromJson(job.ToJson(), "job");
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->ToJson(), job.ToJson());
  EXPECT_EQ(read->calls.size(), 1u);
}

TEST(RunJobs, ResultsComeBack) {
  const auto folder = Folder();
  RankJob job = Job(SavedModule(*folder));
  const at::Tensor a = at::ones({2, 3});
  ASSERT_TRUE(WriteTensorsTo(folder->File("in"), {{{"a", a}}, {}}).ok());
  job.calls = {{folder->File("in"), folder->File("out")}};
  const Status status = RunJobs({job}, *folder, Here());
  ASSERT_TRUE(status.ok()) << status.message();
  const auto result = ReadRankResult(folder->File("out"));
  ASSERT_TRUE(result.ok()) << result.status().message();
  EXPECT_EQ(result->error, "");
  ASSERT_EQ(result->record.outputs.size(), 3u);
  EXPECT_EQ(result->record.outputs[0].first, "0");
  EXPECT_TRUE(result->record.outputs[0].second.equal(a.mul(3)));
  EXPECT_EQ(result->record.outputs[1].first, "sum");
  EXPECT_EQ(result->record.outputs[2].first, "2");
  EXPECT_EQ(result->record.outputs[2].second.dim(), 1);
}

TEST(RunJobs, ACallThatThrowsInASourceIsRecordedAndTheNextOneRuns) {
  const auto folder = Folder();
  RankJob job = Job(SavedModule(*folder));
  ASSERT_TRUE(WriteTensorsTo(folder->File("bad"), {{{"unknown", at::ones({1})}}, {}}).ok());
  ASSERT_TRUE(WriteTensorsTo(folder->File("good"), {{{"a", at::ones({1})}}, {}}).ok());
  job.calls = {{folder->File("bad"), folder->File("out-bad")}, {folder->File("good"), folder->File("out-good")}};
  ASSERT_TRUE(RunJobs({job}, *folder, Here()).ok());
  EXPECT_NE(ReadRankResult(folder->File("out-bad"))->error, "");
  EXPECT_EQ(ReadRankResult(folder->File("out-good"))->error, "");
}

// The process that hangs wrote its id before it did.
void ExpectGone(const TempFolder& folder) {
  const auto text = ReadTextFile(folder.File("hanging"), 100);
  ASSERT_TRUE(text.ok());
  const pid_t pid = std::atoi(text->c_str());
  ASSERT_GT(pid, 1);
  EXPECT_EQ(kill(pid, 0), -1);
}

RankJob Hanging(const TempFolder& folder) {
  RankJob job = Job("hang");
  job.store = folder.File("hanging");
  return job;
}

RankJob AfterHanging(const TempFolder& folder, const std::string& behaviour, int64_t rank) {
  RankJob job = Job(behaviour, rank);
  job.directory = "converted";  // so that messages speak of its rank
  job.store = folder.File("hanging");
  return job;
}

TEST(RunJobs, AProcessThatIsKilledEndsTheOthers) {
  const auto folder = Folder();
  const Status status = RunJobs({Hanging(*folder), AfterHanging(*folder, "die", 1)}, *folder, Here());
  EXPECT_EQ(status.code(), Code::kVerify);
  EXPECT_THAT(status.message(), HasSubstr("the process of rank 1 was ended by signal 9"));
  EXPECT_THAT(status.message(), HasSubstr("the last it said: about to die"));
  ExpectGone(*folder);
}

TEST(RunJobs, TheSentenceAndCodeOfTheProcessThatFailsAreKept) {
  const auto folder = Folder();
  const Status status = RunJobs({Hanging(*folder), AfterHanging(*folder, "/no/such/model.pt", 1)}, *folder, Here());
  EXPECT_EQ(status.code(), Code::kVerify);
  EXPECT_THAT(status.message(), HasSubstr("rank 1: "));
  EXPECT_THAT(status.message(), HasSubstr("/no/such/model.pt"));
  ExpectGone(*folder);
}

TEST(RunJobs, TimeIsLimited) {
  const auto folder = Folder();
  const Status status = RunJobs({Hanging(*folder)}, *folder, Here(1));
  EXPECT_EQ(status.code(), Code::kVerify);
  EXPECT_THAT(status.message(), HasSubstr("longer than 1 s; give more with --timeout"));
}

TEST(RunJobs, AProgramThatIsNotThere) {
  const auto folder = Folder();
  const Status status = RunJobs({Job("x")}, *folder, {"/no/such/program", 300});
  EXPECT_EQ(status.code(), Code::kVerify);
  EXPECT_THAT(status.message(), HasSubstr("exit code 127"));
}

// What a worker of this test does.
int Work(const std::string& job_path) {
  const auto text = ReadTextFile(job_path, 1 << 20);
  const auto json = ParseJson(*text, job_path);
  const auto job = RankJob::FromJson(*json, job_path);
  if (job->model == "hang") {
    const std::string unfinished = job->store + ".part";
    std::ofstream(unfinished) << getpid();
    std::filesystem::rename(unfinished, job->store);
    while (true) pause();
  }
  while (!job->store.empty() && !std::filesystem::exists(job->store)) usleep(1000);
  if (job->model != "die") return RankMain(job_path);
  fprintf(stderr, "about to die\n");
  raise(SIGKILL);
  return 0;
}

}  // namespace
}  // namespace autoep

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "_rank") return autoep::Work(argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
