// SPDX-License-Identifier: Apache-2.0
// AUTOEP_API marks what libautoep.so exports; everything else is hidden.
#pragma once

#define AUTOEP_API __attribute__((visibility("default")))
