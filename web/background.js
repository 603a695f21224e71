// A click on the extension's button sharpens the videos of the page, the next one stops that.
chrome.action.onClicked.addListener(async ({ id: tabId }) => {
  let text = "", title = await chrome.action.getTitle({});
  try {
    const func = () => globalThis.toggleSharpening?.() ?? null; // of a frame that is new to the extension
    const frames = await chrome.scripting.executeScript({ target: { tabId, allFrames: true }, func });
    const stopped = frames.some(({ result }) => result === false);
    const frameIds = frames.filter(({ result }) => result === null).map(({ frameId }) => frameId);
    const files = ["network.js", "sharpen.js", "content.js"];
    if (frameIds.length && !stopped) await chrome.scripting.executeScript({ target: { tabId, frameIds }, files });
  } catch (error) { // of a page of the browser itself, for example
    [text, title] = ["!", error.message];
  }
  const shown = [chrome.action.setBadgeText({ tabId, text }), chrome.action.setTitle({ tabId, title })];
  await Promise.all(shown).catch(() => {}); // the tab is closed
});
