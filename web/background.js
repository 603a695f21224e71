// A click on the extension's button sharpens the videos of the page, the next one stops that.
chrome.action.onClicked.addListener(async ({ id: tabId }) => {
  let text = "", title = await chrome.action.getTitle({});
  try {
    const func = () => globalThis.toggleSharpening?.() ?? false;
    const frames = await chrome.scripting.executeScript({ target: { tabId, allFrames: true }, func });
    const frameIds = frames.filter(({ result }) => !result).map(({ frameId }) => frameId);
    const files = ["network.js", "sharpen.js", "content.js"];
    if (frameIds.length) await chrome.scripting.executeScript({ target: { tabId, frameIds }, files });
  } catch (error) { // of a page of the browser itself, for example
    [text, title] = ["!", error.message];
  }
  await chrome.action.setBadgeText({ tabId, text });
  await chrome.action.setTitle({ tabId, title });
});
