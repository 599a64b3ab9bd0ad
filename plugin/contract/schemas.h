// SPDX-License-Identifier: Apache-2.0
// The op contract: every schema of the `autoep` namespace, and the ABI number written into each rewritten graph.
//
// TorchScript does not print an argument that equals its default, so schemas have none. A schema never changes once a
// release has written it; a new form is a new overload and a new ABI number.
#pragma once

#include <cstdint>

namespace autoep::contract {

inline constexpr int64_t kOpAbi = 1;

// Sends every (token, choice) pair to the rank that holds its expert, and groups what arrives by expert.
//
//   x          [T, H]       float; this rank's tokens
//   ids        [T, k]       int64; expert of each choice, in [0, E)
//   scale      [T, k]?      multiplies the row on the way out, where the source weights the expert's input; else none
//   placement  [E, 1, 2]    int64, CPU or x's device; (rank, slot) of each expert. One replica in this ABI.
//   ep_size    ranks in the group; 1 needs no group
//   group      name of the process group (see comm/resolve.h); "" means the default group
//   layer      "<module path>#<plan digest>": names the layer in messages; ranks that disagree fail
// returns
//   rows       [R, H]       x's dtype; grouped by this rank's slots; inside a slot by source rank, this one last, then by token,
//                           then choice
//   offsets    [S]          int32; end of each slot's group in rows, S slots on this rank; offsets[S-1] == R
//   counts     [E]          int64; this rank's own pairs per expert; on CPU when ep_size > 1
//   order      [T, k]       int64; position of each pair in rows, where ep_size == 1
//              [T, 2k]      where ep_size > 1: a token is sent once to each rank that holds one of its experts, and the first of
//                           its choices there has the position in this rank's send buffer (sorted by rank, this one last, and
//                           token); the other choices have positions past its end. Then each choice's slot number, rank * S + slot
//   received   [N, S]       int64; rows that came from each rank for each slot
//              [N, S + N]   where ep_size > 1, on CPU; then the tokens that each rank sent to each
inline constexpr char kDispatch[] =
    "dispatch(Tensor x, Tensor ids, Tensor? scale, Tensor placement, int ep_size, str group, str layer, int abi) -> "
    "(Tensor rows, Tensor offsets, Tensor counts, Tensor order, Tensor received)";

// The grouped feed-forward of this rank's experts.
//
//   rows          [R, H]; offsets [S] int32 as from dispatch
//   gate_up       [S, 2I, H] (gate rows, then up rows), or up [S, I, H] where the activation is not gated
//   down          [S, H, I];  gate_up_bias [S, 2I]?;  down_bias [S, H]?
//   activation    a name of contract/activation.h; activation_args its numbers (alpha, limit)
// returns [R, H] in rows' dtype. Weights of first size 0 are refused: "no shard attached".
inline constexpr char kExperts[] =
    "experts(Tensor rows, Tensor offsets, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "str activation, float[] activation_args, str layer, int abi) -> Tensor";

// Brings rows back to their tokens and sums over the choices.
//
//   rows     [R, H];  weights [T, k]? float, any dtype; none where the weight acted on the input
//   the rest as given to and returned by dispatch
// returns [T, H] in promote(rows, weights): sum over k of weights * row, accumulated in at least fp32. With several ranks each
// rank's part of the sum travels once a token, bf16 where rows are bf16, else in the sum's dtype.
inline constexpr char kCombine[] =
    "combine(Tensor rows, Tensor? weights, Tensor order, Tensor counts, Tensor received, Tensor placement, int ep_size, "
    "str group, str layer, int abi) -> Tensor";

// The router, from logits to the chosen experts and their weights, put in by an optimisation pass. On every device it is
//   scores   f(logits in score_dtype), f by `scores`: "softmax" over E, "sigmoid", "none"
//   choice   scores + bias; with num_groups > 1, E falls into that many groups of neighbours, each scored by group_score, "max"
//            or "top2_sum" of its choice, and outside the top_groups best of them choice is group_fill
//   ids      topk(choice, top_k, sorted); ties fall as they do in topk
//   weights  choice[ids] if weigh_choice, else scores[ids]; in weight_dtype; then by `renorm`: "none", "sum": divided by (their
//            sum + renorm_min), "clamp": by max(their sum, renorm_min), "softmax" of them; times scale; in dtype
// A dtype that is none leaves the dtype as it is. bias [E] or [1, E]. Groups need 2-D logits.
//   logits [.., E] float  ->  weights [.., top_k], ids [.., top_k] int64
inline constexpr char kRoute[] =
    "route(Tensor logits, Tensor? bias, ScalarType? score_dtype, str scores, int num_groups, int top_groups, str group_score, "
    "float group_fill, int top_k, bool sorted, bool weigh_choice, ScalarType? weight_dtype, str renorm, float renorm_min, "
    "float scale, ScalarType? dtype, str layer, int abi) -> (Tensor weights, Tensor ids)";

// route with the product that makes the logits inside: linear(x, gate, gate_bias), its operands cast to logits_dtype; none: as they
// are. With a dtype wider than theirs the logits are not rounded to theirs.
//   x [.., H], gate [E, H], gate_bias [E]?
inline constexpr char kRouteLinear[] =
    "route.linear(Tensor x, Tensor gate, Tensor? gate_bias, Tensor? bias, ScalarType? logits_dtype, ScalarType? score_dtype, "
    "str scores, int num_groups, int top_groups, str group_score, float group_fill, int top_k, bool sorted, bool weigh_choice, "
    "ScalarType? weight_dtype, str renorm, float renorm_min, float scale, ScalarType? dtype, str layer, int abi) -> "
    "(Tensor weights, Tensor ids)";

// dispatch, experts and combine of one rank that holds every expert, as one op: nothing in between is given away, so nothing need
// be kept. Arguments as theirs; placement [E, 1, 2] with rank 0 throughout. The sum is given in `dtype`; none: as combine gives it.
inline constexpr char kMoe[] =
    "moe(Tensor x, Tensor ids, Tensor? weights, Tensor? scale, Tensor placement, Tensor gate_up, Tensor down, "
    "Tensor? gate_up_bias, Tensor? down_bias, str activation, float[] activation_args, ScalarType? dtype, str layer, int abi) -> "
    "Tensor";

// The same on several ranks, of which each holds its shard of the experts: dispatch, experts and combine of `ep_size` ranks of
// `group`. Slots and weights travel with the tokens, so that each way is one exchange.
inline constexpr char kMoeRanks[] =
    "moe.ranks(Tensor x, Tensor ids, Tensor? weights, Tensor? scale, Tensor placement, Tensor gate_up, Tensor down, "
    "Tensor? gate_up_bias, Tensor? down_bias, str activation, float[] activation_args, ScalarType? dtype, int ep_size, str group, "
    "str layer, int abi) -> Tensor";

// Marks where a source model's routing is decided, so that a run can be compared route by route (ops/recorder.h). Returns a
// copy of ids; `weights` is only seen. Put into instrumented copies of source models, never into a converted one.
inline constexpr char kRecordRoutes[] = "record_routes(Tensor ids, Tensor weights, str layer) -> Tensor";

// What a rank needs of the directory `dir`: checks manifest, ABI and shard, and returns the expert tensors of `rank` by
// their parameter names in model.pt; none where every rank's model holds its own. Python's loader is this op and assignments.
inline constexpr char kLoadShard[] = "load_shard(str dir, int rank) -> Dict(str, Tensor)";

// The manifest of `dir` as JSON, after the same checks of manifest and ABI.
inline constexpr char kReadManifest[] = "read_manifest(str dir) -> str";

}  // namespace autoep::contract
