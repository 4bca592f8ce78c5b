// d * scale * number - dmin * minimum, in superblocks of eight groups.
#set BITS4 1
#set VECTORS 1
#set HIGH 1
#set OFFSET 0
#set SCALE_SUPER 1
#set MIN 1
#set HIGH1 1
#include "shared/group.wgsl"
