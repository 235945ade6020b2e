// Names with a meaning to the compiler.

/** Results of a closing graph with this prefix are updates in place: they stay where they are and are not fetched. */
export const updateName = "update ";
