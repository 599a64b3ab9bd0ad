// SPDX-License-Identifier: Apache-2.0
// The rules that hold between the fields of a manifest. For ParseManifest, and for whoever fills in a Manifest.
#pragma once

#include "plugin/contract/manifest.h"
#include "plugin/io/status.h"

namespace autoep::contract {

// Names are plain file names and occur once, hashes are 64 hex digits, each placement uses every slot once, source parts
// cover their tensor exactly once, pieces are complete and have the sizes that the placement gives. kPlugin; the sentence
// begins with the key ("layers[0].tensors[1].pieces: ...").
Status CheckManifest(const Manifest& manifest);

}  // namespace autoep::contract
