// SPDX-License-Identifier: Apache-2.0
// What a file is that is no TorchScript archive, so that the message can say what to do. Used by zip_directory.cc alone.
#pragma once

#include <string>
#include <string_view>

#include "plugin/io/status.h"

namespace autoep {

class ZipDirectory;

// Ok for a file that begins as a zip does. Else kInput without the file's name.
Status CheckZipMagic(std::string_view bytes);

// Ok if the archive holds what every TorchScript archive does. Else kInput without the file's name.
Status CheckTorchScript(const ZipDirectory& directory);

}  // namespace autoep
