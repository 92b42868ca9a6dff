//! What the operator reads from a pod's address, and any text from elsewhere that it repeats.

use crate::{presentable, text};
use vault_token_operator::text::{one_line, quote};
use vault_token_operator::wire::Answer;

/// Longest piece that is quoted, and longest line that is repeated: so many characters, and the word of how many there were.
const LONGEST_QUOTE: usize = 64 + 40;
const LONGEST_LINE: usize = 256 + 40;

pub fn hold(input: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<Answer>(input) {
        presentable(&one_line(&answer.message), LONGEST_LINE);
        let again = serde_json::to_vec(&answer).expect("JSON");
        assert_eq!(serde_json::from_slice::<Answer>(&again).expect("an answer"), answer);
    }
    let text = text(input);
    let (line, quoted) = (one_line(&text), quote(&text));
    presentable(&line, LONGEST_LINE);
    presentable(&quoted, LONGEST_QUOTE);
    assert_eq!(line.is_empty(), text.trim().is_empty(), "{line:?}");
    let inside = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect("quotes around it");
    assert!(!inside.replace("\\\\", "").replace("\\\"", "").contains('"'), "it ends within: {quoted}");
}
