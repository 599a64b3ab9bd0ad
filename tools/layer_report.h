// SPDX-License-Identifier: Apache-2.0
// Detected layers and refusals as text and as JSON, for inspect and convert.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "passes/detect/moe_layer.h"
#include "plugin/contract/manifest.h"
#include "plugin/io/json.h"
#include "plugin/io/status.h"
#include "tools/console.h"
#include "tools/table.h"

namespace autoep {

int64_t TotalExperts(const std::vector<MoeLayer>& layers);
int64_t TotalExpertBytes(const std::vector<MoeLayer>& layers);

// What every list of layers says of one, be it of a source or of a converted directory.
struct LayerLine {
  std::string name;  // as PathName gives it
  std::string family;
  std::string form;
  int64_t num_experts = 0;
  int64_t top_k = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  std::string activation;
  std::string dtype;
  int64_t bytes = 0;
};
std::vector<Table::Column> LayerColumns(const std::string& bytes_title);
std::vector<std::string> LayerCells(const LayerLine& line);  // one a column
Json LineJson(const LayerLine& line);                        // all but name, dtype and bytes

// One row a layer: path, family, form, experts, top-k, sizes, activation, dtype, bytes.
std::string LayerTable(const std::vector<MoeLayer>& layers, const Console& console);
// Routers, how the experts are stored, shared experts and notes, equal ones once; "" if there is nothing to say.
std::string LayerRemarks(const std::vector<MoeLayer>& layers);
// One line: "model.layers.0.mlp: <predicate>, at modeling_mixtral.py:128".
std::string RefusalSentence(const Refusal& refusal);
// "Refused:" and one entry a refusal, with its node and source line; "" if there are none.
std::string RefusalList(const std::vector<Refusal>& refusals);

// kNoMoe: why `model`, a file's name, has no layer to rewrite. Call it when there is none.
Status NoLayersError(const std::string& model, const std::vector<Refusal>& refusals);

Json LayersJson(const std::vector<MoeLayer>& layers);
Json RefusalsJson(const std::vector<Refusal>& refusals);

// "model.layers.0.mlp", "(root)" for the empty path, "(root)[1]" for the second layer of a root that holds several.
std::string PathName(const std::string& path);

}  // namespace autoep
