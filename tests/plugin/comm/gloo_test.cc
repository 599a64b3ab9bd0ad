// SPDX-License-Identifier: Apache-2.0
// Real processes over Gloo, without Python: the group, the exchange, a layer forward and backward, a rank that dies.
#include "plugin/comm/gloo.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include "plugin/comm/resolve.h"
#include "tests/plugin/io/temp_folder.h"
#include "tests/plugin/ops/moe_layer.h"

namespace autoep::comm {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kNoException = 0;
constexpr int kException = 1;
constexpr std::chrono::milliseconds kTimeout{60'000};

// Runs body(rank) in `size` processes and returns their exit codes. This process must not have used LibTorch's threads yet.
std::vector<int> RunProcesses(int64_t size, const std::function<void(int64_t)>& body) {
  std::vector<pid_t> children;
  for (int64_t rank = 0; rank < size; ++rank) {
    const pid_t child = fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    try {
      body(rank);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %ld: %s\n", static_cast<long>(rank), error.what());
      _exit(kException);
    }
    _exit(kNoException);
  }
  std::vector<int> codes;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  return codes;
}

// A TCP port that is free now.
int FreePort() {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  TORCH_CHECK(bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0, "bind");
  TORCH_CHECK(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  close(listener);
  return ntohs(address.sin_port);
}

std::unique_ptr<GlooGroup> Join(const std::string& store, int64_t rank, int64_t size, const std::string& name = "ep") {
  Result<std::unique_ptr<GlooGroup>> group =
      CreateGlooGroup({.store = store, .rank = rank, .size = size, .name = name, .timeout = kTimeout});
  TORCH_CHECK(group.ok(), group.status().message());
  return std::move(group).value();
}

TEST(Gloo, ALayerOnTwoProcessesEqualsOneProcess) {
  const TempFolder folder;
  const std::string store = folder.path() + "/store";
  EXPECT_THAT(RunProcesses(2,
                           [&](int64_t rank) {
                             const auto group = Join(store, rank, 2);
                             for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16}) {
                               const autoep::testing::MoeLayer layer =
                                   autoep::testing::RandomLayer({.experts = 4, .hidden = 8, .inner = 6, .type = type});
                               const std::vector<autoep::testing::Tokens> tokens = {autoep::testing::RandomTokens(layer, 5, 2, 1),
                                                                                    autoep::testing::RandomTokens(layer, 0, 2, 2)};
                               for (const autoep::testing::Tokens& mine : {tokens[rank], tokens[1 - rank]})
                                 autoep::testing::CheckRank(layer, mine, rank, 2, "ep");
                             }
                             TORCH_CHECK(group->Barrier().ok());
                           }),
              Each(kNoException));
}

TEST(Gloo, MeetsOverTcp) {
  const int port = FreePort();
  EXPECT_THAT(RunProcesses(2,
                           [&](int64_t rank) {
                             const auto group = Join("127.0.0.1:" + std::to_string(port), rank, 2, "tcp");
                             TORCH_CHECK(group->Barrier().ok());
                             TORCH_CHECK(ResolveCommunicator("tcp", 2).ok());
                             TORCH_CHECK(!CreateGlooGroup({.store = "unused", .rank = 0, .size = 1, .name = "tcp"}).ok(),
                                         "a name was taken twice");
                           }),
              Each(kNoException));
}

TEST(Gloo, ARankThatDiesFailsTheOther) {
  const TempFolder folder;
  const std::string store = folder.path() + "/store";
  EXPECT_THAT(RunProcesses(2,
                           [&](int64_t rank) {
                             signal(SIGPIPE, SIG_DFL);  // as in a program that starts
                             const auto group = Join(store, rank, 2);
                             TORCH_CHECK(signal(SIGPIPE, SIG_IGN) == SIG_IGN, "a broken pipe would end this process");
                             if (rank == 1) _exit(kNoException);
                             const autoep::testing::MoeLayer layer =
                                 autoep::testing::RandomLayer({.experts = 4, .hidden = 8, .inner = 6, .type = at::kFloat});
                             autoep::testing::CheckRank(layer, autoep::testing::RandomTokens(layer, 5, 2, 1), rank, 2, "ep");
                           }),
              ElementsAre(kException, kNoException));
}

TEST(Gloo, BadOptionsAreSentences) {
  EXPECT_THAT(CreateGlooGroup({.store = "", .rank = 0, .size = 1}).status().message(), HasSubstr("needs a store"));
  EXPECT_THAT(CreateGlooGroup({.store = "x", .rank = 2, .size = 2}).status().message(), HasSubstr("rank 2 of a Gloo group of 2"));
  EXPECT_THAT(CreateGlooGroup({.store = "/nowhere/at/all/store", .rank = 0, .size = 1}).status().message(),
              HasSubstr("no folder that exists"));
}

}  // namespace
}  // namespace autoep::comm
