//! A long text as requests: windows that predict every token once.

use microscale_model::Request;

/// The requests that predict each of `tokens` once. A window's input has at most `window` tokens; the first window
/// predicts as many, every further one `stride`, with as much before them as there is room for. The first token is
/// predicted after `prefix`.
///
/// With `stride = window` windows do not overlap: each begins with the last token of the one before (the last window,
/// if short, with more), as in the harness's rolling log-likelihoods.
///
/// # Panics
/// If `stride` is 0 or above `window`.
pub fn rolling(tokens: &[u32], prefix: u32, window: usize, stride: usize) -> Vec<Request> {
    assert!((1..=window).contains(&stride), "1 ≤ stride ≤ window");
    let mut requests = Vec::new();
    let mut done = 0;
    while done < tokens.len() {
        let end = tokens.len().min(done + if done == 0 { window } else { stride });
        // The input is all but the last token; the prefix stands before the text.
        let start = (end + 1).saturating_sub(window + 1);
        let before = (start == 0).then_some(prefix);
        let taken = &tokens[start.saturating_sub(1)..end];
        requests.push(Request {
            tokens: before.into_iter().chain(taken.iter().copied()).collect(),
            context: done + 1 - start,
        });
        done = end;
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_predicted_once() {
        let tokens: Vec<u32> = (1..=23).collect();
        for (window, stride) in [(5, 5), (5, 2), (8, 1), (23, 23), (40, 7), (1, 1)] {
            let requests = rolling(&tokens, 0, window, stride);
            let predicted: Vec<u32> = requests.iter().flat_map(|r| r.tokens[r.context..].to_vec()).collect();
            assert_eq!(predicted, tokens, "{window} {stride}");
            for (i, request) in requests.iter().enumerate() {
                assert!(request.context > 0 && request.input().len() <= window);
                let first = request.tokens[0];
                assert!(request.tokens.iter().enumerate().all(|(j, &token)| token == first + j as u32));
                assert!(i == 0 || request.context > window - stride || first == 0, "{window} {stride} {request:?}");
            }
        }
        assert_eq!(rolling(&tokens[..3], 0, 2, 2)[1], Request { tokens: vec![1, 2, 3], context: 2 });
    }
}
