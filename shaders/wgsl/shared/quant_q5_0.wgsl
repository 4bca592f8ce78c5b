// scale * (number - 16).
#set BITS4 1
#set VECTORS 1
#set HIGH 1
#set OFFSET 16
#set SCALE_HALF 1
#set HIGH1 1
#include "shared/group.wgsl"
