// heap_count.hpp: how often the program asked the heap for memory, by whatever road: new, malloc and its relatives.
#pragma once

namespace support {

/// Requests since the program started.
long heap_requests();

}  // namespace support
