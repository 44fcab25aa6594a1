// asymkv.hpp: the one header to include: a key/value cache in 1 to 8 bits with its own attention.
#pragma once

#include "asymkv/attention/merge.hpp"
#include "asymkv/attention/reference.hpp"
#include "asymkv/cache/asym_kv_cache.hpp"
#include "asymkv/cache/attend_batch.hpp"
#include "asymkv/cache/dense_kv_cache.hpp"
#include "asymkv/cache/page_pool.hpp"
#include "asymkv/policy.hpp"
#include "asymkv/quantize/kivi_layout.hpp"
#include "asymkv/quantize/quantizers.hpp"
#include "asymkv/state/describe.hpp"
