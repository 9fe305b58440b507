# Writes the bytes of FROM as an array NAME and its size into the C++ file TO.
file(READ ${FROM} hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR size "${digits} / 2")
string(REGEX REPLACE "(..)" "\\\\x\\1" text "${hex}")
string(REGEX REPLACE "(................................................................................................................................)" "\\1\"\n\"" text "${text}")
file(WRITE ${TO} "extern const unsigned long ${NAME}Size;\nextern const char ${NAME}[];\n"
     "const unsigned long ${NAME}Size = ${size};\n"
     "alignas(16) const char ${NAME}[] =\n\"${text}\";\n")
